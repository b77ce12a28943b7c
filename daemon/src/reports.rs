//! The reports of all images of one namespace: written by the image tasks, read by status publication, service daemon
//! and admin socket.

use rbd::mirroring::StatusState;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::flush::Flushes;
use crate::report::Report;

/// Reports by global image id; a cheap handle.
#[derive(Clone, Default)]
pub struct Reports {
    images: Arc<Mutex<BTreeMap<Arc<str>, watch::Receiver<Report>>>>,
    trouble: Arc<Mutex<Option<String>>>,
    flushes: Arc<Mutex<BTreeMap<Arc<str>, Flushes>>>,
}

/// How many images are in which condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// All of them.
    pub assigned: usize,
    /// Those of unknown state.
    pub warning: usize,
    /// Those that failed.
    pub error: usize,
}

impl Reports {
    /// Opens an image's report, in place of an earlier one.
    pub fn open(&self, global_image_id: &Arc<str>, first: Report) -> watch::Sender<Report> {
        let (sender, receiver) = watch::channel(first);
        self.lock().insert(global_image_id.clone(), receiver);
        sender
    }

    /// Forgets an image.
    pub fn close(&self, global_image_id: &str) {
        self.lock().remove(global_image_id);
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner).remove(global_image_id);
    }

    /// Where it is asked that an image be flushed.
    pub fn flushes(&self, global_image_id: &Arc<str>) -> Flushes {
        let mut flushes = self.flushes.lock().unwrap_or_else(PoisonError::into_inner);
        flushes.entry(global_image_id.clone()).or_default().clone()
    }

    /// Says, in place of what its task does, of every image that follows the remote one, what is wrong with the remote
    /// cluster or pool; `None` when nothing is.
    pub fn set_trouble(&self, why: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// What is wrong with the remote cluster or pool, if this report is of an image that depends on it.
    pub fn trouble_of(&self, report: &Report) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone().filter(|_| follows(report.state))
    }

    /// An image's current report.
    pub fn get(&self, global_image_id: &str) -> Option<Report> {
        self.lock().get(global_image_id).map(|report| report.borrow().clone())
    }

    /// The reports as they are published: of images that follow a remote cluster that is silent, that.
    pub fn shown(&self) -> Vec<(Arc<str>, Report)> {
        let mut shown = Vec::new();
        self.visit(|id, report| shown.push((id.clone(), report.clone())));
        shown
    }

    /// The current reports, as the tasks of the images made them.
    pub fn current(&self) -> Vec<(Arc<str>, Report)> {
        self.lock().iter().map(|(id, report)| (id.clone(), report.borrow().clone())).collect()
    }

    /// Calls `visit` with each image and its current report.
    pub fn visit(&self, mut visit: impl FnMut(&Arc<str>, &Report)) {
        for (id, report) in self.lock().iter() {
            let report = report.borrow();
            match self.trouble_of(&report) {
                Some(why) => {
                    let image_name = report.image_name.clone();
                    visit(id, &Report { image_name, ..Report::new(StatusState::Error, why) });
                }
                _ => visit(id, &report),
            }
        }
    }

    /// Global id of the image whose local name is `name`.
    pub fn by_name(&self, name: &str) -> Option<Arc<str>> {
        let images = self.lock();
        images.iter().find(|(_, report)| report.borrow().image_name == name).map(|(id, _)| id.clone())
    }

    /// Counts the images.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.visit(|_, report| {
            counts.assigned += 1;
            match report.state {
                StatusState::Error => counts.error += 1,
                StatusState::Unknown => counts.warning += 1,
                _ => {}
            }
        });
        counts
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, watch::Receiver<Report>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// True for states in which an image depends on the remote cluster.
fn follows(state: StatusState) -> bool {
    matches!(
        state,
        StatusState::Replaying | StatusState::Syncing | StatusState::StartingReplay | StatusState::Unknown
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_counted_and_found_by_name() {
        let reports = Reports::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let sender = reports.open(&a, Report::default());
        let failed = reports.open(&b, Report::new(StatusState::Error, "split-brain"));
        sender.send_modify(|report| report.image_name = "disk".into());
        assert_eq!(reports.by_name("disk"), Some(a));
        assert_eq!(reports.counts(), Counts { assigned: 2, warning: 0, error: 1 });

        let states = || {
            let mut states = Vec::new();
            reports.visit(|_, report| states.push((report.state, report.description.clone())));
            states
        };
        sender.send_modify(|report| report.state = StatusState::Replaying);
        reports.set_trouble(Some("no answer".into()));
        let silent = (StatusState::Error, "no answer".to_string());
        assert_eq!(states(), [silent, (StatusState::Error, "split-brain".to_string())]);
        reports.set_trouble(None);
        sender.send_modify(|report| report.state = StatusState::Stopped);
        reports.set_trouble(Some("no answer".into()));
        assert_eq!(states()[0].0, StatusState::Stopped, "it does not depend on the remote cluster");

        drop(failed);
        reports.close("b");
        assert_eq!(reports.current().len(), 1);
    }
}
