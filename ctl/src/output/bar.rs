//! Progress for people: a bar on a terminal, nothing in a pipe.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar on standard error. It goes away when dropped.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar for `action` ("promoting"), counted in `unit` ("images").
    pub fn new(action: &str, unit: &str) -> Bar {
        // Without a terminal indicatif draws nothing.
        let bar = ProgressBar::new(0).with_message(action.to_string());
        let template = format!("{{msg}} [{{bar:30}}] {{pos}}/{{len}} {unit}, {{elapsed}} {{prefix}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Bar { bar }
    }

    /// Shows how far it is.
    pub fn set(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// Shows a remark behind the bar.
    pub fn remark(&self, remark: &str) {
        self.bar.set_prefix(rados::text::visible(remark).into_owned());
    }

    /// Moves the clock on by itself while nothing else happens.
    pub fn keep_moving(&self) {
        self.bar.enable_steady_tick(Duration::from_millis(500));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}
