//! The few options that are needed before there is a connection: log, pid file, admin socket, user.
//!
//! librados reads the configuration for everything that concerns the cluster. But a daemon opens its log, gives up its
//! privileges and forks before librados may start its threads, so these options are looked up here: on the command
//! line, then in the sections `[client.ID]`, `[client]` and `[global]` of the configuration file. Within a value,
//! `$cluster`, `$name`, `$type`, `$id`, `$host`, `$pid`, `$home` and other options (`$run_dir`) are expanded.
//!
//! Reference: `src/common/ConfUtils.cc`, `src/common/config.cc`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bootstrap::connect::default_conf_places;

use crate::options::Options;

/// How deep `$option` may lead to a value with another `$option` in it.
const EXPANSION_DEPTH_MAX: usize = 4;

/// The command line on top of the configuration file.
#[derive(Debug, Clone)]
pub struct Configuration {
    options: Options,
    /// The configuration file that was found, for librados to read.
    pub conf_file: Option<PathBuf>,
    /// From weakest to strongest.
    sections: Vec<BTreeMap<String, String>>,
}

impl Configuration {
    /// Finds and reads the configuration file. A file that was named must be readable; without one, the first of
    /// Ceph's default places that has a file is taken, if any.
    pub fn load(options: Options) -> anyhow::Result<Self> {
        let conf_file = match &options.conf_file {
            Some(named) => Some(named.clone()),
            None => default_conf_places(&options.cluster).into_iter().find(|place| place.is_file()),
        };
        let text = match &conf_file {
            Some(path) => std::fs::read_to_string(path).map_err(|e| {
                anyhow::anyhow!("cannot read the configuration file '{}': {e}", path.display())
            })?,
            None => String::new(),
        };
        let mut parsed = parse(&text);
        let wanted = ["global", "client", options.name.as_str()];
        let sections = wanted.iter().map(|section| parsed.remove(*section).unwrap_or_default()).collect();
        Ok(Configuration { options, conf_file, sections })
    }

    /// The command line.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The value of an option with everything in it expanded; `None` when neither command line nor file sets it.
    pub fn get(&self, option: &str) -> Option<String> {
        self.raw(option).map(|value| self.expand(value, EXPANSION_DEPTH_MAX))
    }

    /// Like [`Configuration::get`], with a default to expand.
    pub fn get_or(&self, option: &str, default: &str) -> String {
        self.get(option).unwrap_or_else(|| self.expand(default, EXPANSION_DEPTH_MAX))
    }

    /// True when the option is set to something that Ceph takes for true.
    pub fn is_true(&self, option: &str) -> bool {
        self.get(option).is_some_and(|value| matches!(value.as_str(), "true" | "yes" | "1" | "on"))
    }

    fn raw(&self, option: &str) -> Option<&str> {
        let from_file = || self.sections.iter().rev().find_map(|section| section.get(option));
        self.options.ceph_options.get(option).or_else(from_file).map(String::as_str)
    }

    fn expand(&self, value: &str, depth: usize) -> String {
        let mut expanded = String::new();
        let mut rest = value;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push_str(before);
            let (name, behind) = variable(after);
            match self.variable(name, depth) {
                Some(text) => expanded.push_str(&text),
                None => expanded.push_str(&rest[before.len()..rest.len() - behind.len()]),
            }
            rest = behind;
        }
        expanded + rest
    }

    fn variable(&self, name: &str, depth: usize) -> Option<String> {
        let (kind, id) = self.options.name.split_once('.').unwrap_or(("client", "admin"));
        match name {
            "cluster" => Some(self.options.cluster.clone()),
            "name" => Some(self.options.name.clone()),
            "type" => Some(kind.to_string()),
            "id" => Some(id.to_string()),
            "pid" => Some(std::process::id().to_string()),
            "host" => self.raw("host").map(str::to_string).or_else(short_hostname),
            "home" => std::env::var("HOME").ok(),
            // Tells the handles of one process apart; ours is the first.
            "cctid" => Some("0".to_string()),
            _ if depth == 0 => None,
            "run_dir" => Some(self.expand(self.raw("run_dir").unwrap_or("/var/run/ceph"), depth - 1)),
            option => self.raw(option).map(|value| self.expand(value, depth - 1)),
        }
    }
}

/// This machine's name up to the first dot.
pub fn short_hostname() -> Option<String> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    name.split('.').next().map(str::to_string)
}

/// Splits what follows a `$` into the variable's name (`name` or `{name}`) and the rest.
fn variable(after: &str) -> (&str, &str) {
    if let Some((name, rest)) = after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
        return (name, rest);
    }
    let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
    after.split_at(end)
}

/// Sections of a configuration file: section → option → value; names with underscores.
fn parse(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut section = "global".to_string();
    let joined = text.replace("\\\n", " ");
    for line in joined.lines().map(without_comment) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.trim().to_string();
        } else if let Some((name, value)) = line.split_once('=') {
            let name = name.split_whitespace().collect::<Vec<_>>().join("_").replace('-', "_");
            let value = value.trim();
            let unquoted = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
            sections.entry(section.clone()).or_default().insert(name, unquoted.unwrap_or(value).to_string());
        }
    }
    sections
}

fn without_comment(line: &str) -> &str {
    let mut quote = None;
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#' | ';') => return line[..at].trim(),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    line.trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(text: &str, ceph_options: &[(&str, &str)]) -> Configuration {
        let mut parsed = parse(text);
        let options = Options {
            foreground: true,
            log_to_stderr: false,
            conf_file: None,
            cluster: "site-a".into(),
            name: "client.mirror.1".into(),
            ceph_options: ceph_options.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        };
        let sections = ["global", "client", "client.mirror.1"].map(|s| parsed.remove(s).unwrap_or_default());
        Configuration { options, conf_file: None, sections: sections.to_vec() }
    }

    #[test]
    fn the_nearest_section_wins_and_the_command_line_wins_over_all() {
        let text = "log file = /g\npid file=/p ; a comment\n[client]\nlog-file = '/c#1'\nhost=h\n[client.mirror.1]\nhost = i\n\
                    [osd]\nlog_file = /o\n";
        let c = configuration(text, &[("admin_socket", "/s")]);
        assert_eq!(c.get("log_file").as_deref(), Some("/c#1"));
        assert_eq!(c.get("pid_file").as_deref(), Some("/p"));
        assert_eq!(c.get("host").as_deref(), Some("i"));
        assert_eq!(c.get("admin_socket").as_deref(), Some("/s"));
        assert_eq!(c.get("setuser"), None);
    }

    #[test]
    fn variables_are_expanded() {
        let c = configuration(
            "run dir = /r/$cluster\nadmin socket = $run_dir/${name}-$id$nothing.asok\nloop = $loop",
            &[],
        );
        assert_eq!(c.get("admin_socket").as_deref(), Some("/r/site-a/client.mirror.1-mirror.1$nothing.asok"));
        assert_eq!(c.get("loop").as_deref(), Some("$loop"));
        assert_eq!(
            c.get_or("log_file", "/var/log/ceph/$cluster-$name.log"),
            "/var/log/ceph/site-a-client.mirror.1.log"
        );
    }
}
