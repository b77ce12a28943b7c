//! A record of what a command did, to be filed: JSON, written whole at every stage, so that the file also tells what had
//! been done when the command was killed.
//!
//! | field | holds |
//! |---|---|
//! | `command`, `arguments` | what was asked for |
//! | `program_version`, `host` | by which program and where |
//! | `site`, `other_site` | names and fsids of the clusters |
//! | `began`, `written` | when, in UTC |
//! | `outcome` | `running`, `done`, `failed`, `different` (of a verification) or `planned` (of a dry run) |
//! | `error` | the sentence that was printed, if it failed |
//! | `details` | of each command, see there |

use std::io::Write;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::time::universal;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has not ended.
    Running,
    /// All was done.
    Done,
    /// Something could not be done.
    Failed,
    /// Copies and primaries differ.
    Different,
    /// Nothing was to be done but to tell what would be.
    Planned,
}

/// A cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SiteName {
    /// Its name.
    pub name: String,
    /// Its fsid.
    pub fsid: String,
}

/// What is recorded of a command beside its details.
#[derive(Debug, Clone)]
pub struct Record {
    path: Option<PathBuf>,
    command: &'static str,
    began: DateTime<Utc>,
    /// This site.
    pub site: SiteName,
    /// The other one, when it was reached or is known by name.
    pub other_site: Option<SiteName>,
}

#[derive(Serialize)]
struct File<'a, D> {
    command: &'a str,
    arguments: Vec<String>,
    program_version: &'a str,
    host: String,
    site: &'a SiteName,
    other_site: &'a Option<SiteName>,
    began: String,
    written: String,
    outcome: Outcome,
    error: Option<String>,
    details: &'a D,
}

impl Record {
    /// A record that goes to `path`, or nowhere.
    pub fn begin(command: &'static str, path: Option<&Path>) -> Record {
        Record {
            path: path.map(Path::to_path_buf),
            command,
            began: Utc::now(),
            site: SiteName::default(),
            other_site: None,
        }
    }

    /// When the command began.
    pub fn began(&self) -> DateTime<Utc> {
        self.began
    }

    /// The text of the record.
    pub fn text<D: Serialize>(
        &self,
        outcome: Outcome,
        error: Option<&Failure>,
        details: &D,
    ) -> Result<String, Failure> {
        let file = File {
            command: self.command,
            arguments: std::env::args().skip(1).collect(),
            program_version: env!("CARGO_PKG_VERSION"),
            host: hostname(),
            site: &self.site,
            other_site: &self.other_site,
            began: universal(self.began),
            written: universal(Utc::now()),
            outcome,
            error: error.map(Failure::to_string),
            details,
        };
        let text = serde_json::to_string_pretty(&file);
        text.map_err(|e| Failure::new(libc::EIO, format!("cannot make the report: {e}")))
            .map(|text| text + "\n")
    }

    /// Writes the record, in one step.
    pub fn write<D: Serialize>(
        &self,
        outcome: Outcome,
        error: Option<&Failure>,
        details: &D,
    ) -> Result<(), Failure> {
        let Some(path) = &self.path else { return Ok(()) };
        let text = self.text(outcome, error, details)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path).map(drop).map_err(|e| e.error)
        });
        written.map_err(|e| Failure::io(format!("write the report '{}'", path.display()), &e))
    }
}

fn hostname() -> String {
    let name = nix::unistd::gethostname().ok();
    name.and_then(|name| name.into_string().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_replaces_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let record = Record::begin("failover", Some(&path));
        record.write(Outcome::Running, None, &["a"]).unwrap();
        record.write(Outcome::Failed, Some(&Failure::invalid("no luck")), &["a", "b"]).unwrap();
        let read: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(read["outcome"], "failed");
        assert_eq!(read["error"], "no luck");
        assert_eq!(read["details"], serde_json::json!(["a", "b"]));
        let nowhere = Record::begin("x", Some(&folder.path().join("none/report")));
        assert_eq!(nowhere.write(Outcome::Done, None, &()).unwrap_err().code(), libc::ENOENT);
    }
}
