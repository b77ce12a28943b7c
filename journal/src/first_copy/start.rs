//! Where the replay starts: the event of a sync point's creation.

use std::ops::ControlFlow;

use rbd::SnapshotNamespace;

use crate::event::{Event, EventEntry, Op};
use crate::metadata::Journal;
use crate::tail::{TailError, walk};
use crate::types::{CommitPosition, EntryPosition};

/// The position of the event that made the snapshot `name`, looked for behind `from` and up to the journal's end as it
/// is at some moment after the call; `None` when it is not there. `client` is a registered one.
pub async fn find_event(
    journal: &Journal,
    client: &str,
    from: CommitPosition,
    name: &str,
) -> Result<Option<EntryPosition>, TailError> {
    let mut found = None;
    walk(journal, client, from, |entry| {
        // What cannot be understood is for the replay to tell.
        let event = EventEntry::decode(&entry.data).map(|entry| entry.event);
        match event {
            Ok(Event::Op {
                op: Op::SnapCreate { namespace: SnapshotNamespace::User, name: created, .. },
                ..
            }) if created == name => {
                found = Some(entry.position);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    })
    .await?;
    Ok(found)
}
