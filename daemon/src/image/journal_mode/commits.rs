//! Stores how far the copy is, beside the replay: whoever is slow to hear of it does not hold up entries.
//!
//! The position is stored once per `rbd_mirror_journal_commit_age` while entries are under way. It is stored at once when
//! all of them are safe, and when a set of objects is done with, but then not more often than [`IDLE_PAUSE`] and
//! [`SET_PAUSE`]: the primary trims its journal by it, and gives up those who lag behind by too many sets; but everybody
//! who watches the journal is told each time.

use std::time::Duration;

use journal::types::{CommitPosition, EntryPosition};
use journal::{Committer, Entry};
use rados::{Error, ErrorClass, Result};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The shortest time between two commits while nothing is under way.
const IDLE_PAUSE: Duration = Duration::from_millis(250);
/// The shortest time between two commits that let go of a set each.
const SET_PAUSE: Duration = Duration::from_millis(100);
/// How long to wait after a commit that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

enum Message {
    HandedOut(Vec<Entry>),
    Safe(EntryPosition),
    Flush(oneshot::Sender<Result<()>>),
}

/// What the task that commits is told, and what it tells.
#[derive(Debug)]
pub(super) struct Commits {
    messages: mpsc::UnboundedSender<Message>,
    safe: watch::Receiver<CommitPosition>,
}

/// The task that commits. It ends with its [`Commits`].
#[derive(Debug)]
pub(super) struct CommitTask(JoinHandle<Result<()>>);

impl CommitTask {
    /// Waits for the task to fail: the remote cluster is of no use any more, or the client was struck out. Cancel-safe.
    pub(super) async fn failed(&mut self) -> Error {
        let ended = || Error::new(libc::ECANCELED, "the task that commits positions ended");
        match (&mut self.0).await {
            Ok(Ok(())) => ended(),
            Ok(Err(error)) => error,
            Err(error) => ended().context(error.to_string()),
        }
    }
}

impl Commits {
    /// Commits through `committer`, at least once per `age` while there is something to commit.
    pub(super) fn new(committer: Committer, age: Duration) -> (Commits, CommitTask) {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (publish, safe) = watch::channel(committer.safe().clone());
        let task = Task { committer, age, publish, due: None, committed_at: None };
        (Commits { messages, safe }, CommitTask(tokio::spawn(task.run(inbox))))
    }

    /// Entries will be applied; without their data.
    pub(super) fn handed_out(&self, entries: Vec<Entry>) {
        self.send(Message::HandedOut(entries));
    }

    /// Everything up to this entry is on disk.
    pub(super) fn safe_up_to(&self, position: EntryPosition) {
        self.send(Message::Safe(position));
    }

    /// How far the copy is.
    pub(super) fn safe(&self) -> CommitPosition {
        self.safe.borrow().clone()
    }

    /// Stores what is safe now.
    pub(super) async fn flush(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Flush(answer));
        answered
            .await
            .unwrap_or_else(|_| Err(Error::new(libc::ECANCELED, "the commit position is not stored")))
    }

    fn send(&self, message: Message) {
        // When the task has ended, `failed` tells why.
        let _ = self.messages.send(message);
    }
}

struct Task {
    committer: Committer,
    age: Duration,
    publish: watch::Sender<CommitPosition>,
    /// When to commit.
    due: Option<Instant>,
    committed_at: Option<Instant>,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) -> Result<()> {
        loop {
            let due = self.due;
            let wait = async move {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                message = inbox.recv() => match message {
                    Some(message) => self.hear(message).await,
                    None => return Ok(()),
                },
                () = wait => self.commit().await?,
            }
        }
    }

    async fn hear(&mut self, message: Message) {
        match message {
            Message::HandedOut(entries) => self.committer.handed_out(&entries),
            Message::Safe(position) => {
                self.committer.safe_up_to(position);
                self.publish.send_replace(self.committer.safe().clone());
                self.plan();
            }
            Message::Flush(answer) => {
                let committed = self.committer.commit().await.map(drop);
                self.due = None;
                let _ = answer.send(committed);
            }
        }
    }

    /// Sets when the next commit is due.
    fn plan(&mut self) {
        if !self.committer.is_due() {
            return;
        }
        let progress = if self.committer.pending() == 0 {
            Progress::AllSafe
        } else if self.committer.lets_go_of_a_set() {
            Progress::SetDone
        } else {
            Progress::Some
        };
        let wanted = due_at(progress, self.committed_at, Instant::now(), self.age);
        self.due = Some(self.due.map_or(wanted, |due| due.min(wanted)));
    }

    async fn commit(&mut self) -> Result<()> {
        self.due = None;
        match self.committer.commit().await {
            Ok(_) => self.committed_at = Some(Instant::now()),
            Err(error) if error.class() == ErrorClass::Transient => {
                tracing::debug!("{error}; trying again");
                self.due = Some(Instant::now() + RETRY_PAUSE);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What there is to commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Some entries, and others are under way.
    Some,
    /// The last entries of a set of objects, and others are under way.
    SetDone,
    /// All entries.
    AllSafe,
}

/// When to commit.
fn due_at(progress: Progress, committed_at: Option<Instant>, now: Instant, age: Duration) -> Instant {
    let pause = match progress {
        Progress::Some => return now + age,
        Progress::SetDone => SET_PAUSE.min(age),
        Progress::AllSafe => IDLE_PAUSE,
    };
    committed_at.map_or(now, |at| now.max(at + pause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_set_that_is_done_is_committed_soon_and_other_progress_late() {
        let (committed, age) = (Instant::now(), Duration::from_secs(5));
        let now = committed + Duration::from_millis(20);
        assert_eq!(due_at(Progress::Some, Some(committed), now, age), now + age);
        assert_eq!(due_at(Progress::SetDone, Some(committed), now, age), committed + SET_PAUSE);
        assert_eq!(due_at(Progress::AllSafe, Some(committed), now, age), committed + IDLE_PAUSE);
        let later = committed + age;
        for progress in [Progress::SetDone, Progress::AllSafe] {
            assert_eq!(due_at(progress, Some(committed), later, age), later);
            assert_eq!(due_at(progress, None, now, age), now);
        }
    }
}
