//! Removes object sets that every connected client has passed.
//!
//! A client needs the sets of all objects in its commit position, and all after them; one that has committed nothing
//! needs all. Clients that were disconnected do not count: they have been told to copy anew. Whoever has the journal
//! open may trim it; the writer does so as well.
//!
//! Reference: `src/journal/JournalTrimmer.cc`.

use rados::Result;
use rados::error::ResultExt;

use crate::metadata::{Journal, JournalLayout, MutableMetadata};
use crate::types::{ClientState, ObjectSet};

/// Removes what nobody needs; answers with the minimum set afterwards. Can be cut off and repeated.
pub async fn trim(journal: &Journal) -> Result<ObjectSet> {
    let metadata = journal.mutable().await?;
    let needed = first_needed_set(&metadata, journal.layout());
    let mut set = metadata.minimum_set;
    while set < needed {
        journal.remove_set(set).await.context(format!("cannot remove object set {set} of {journal}"))?;
        set = ObjectSet(set.0 + 1);
        match journal.set_minimum_set(set).await {
            // Somebody else is trimming, and is ahead.
            Err(e) if e.is(libc::ESTALE) => {}
            other => other?,
        }
    }
    Ok(set)
}

/// The first set that somebody needs.
fn first_needed_set(metadata: &MutableMetadata, layout: &JournalLayout) -> ObjectSet {
    let connected = metadata.clients.iter().filter(|client| client.state == ClientState::Connected);
    let needed = connected.map(|client| {
        let sets = client.commit_position.0.iter().map(|at| layout.set_of(at.object));
        sets.min().unwrap_or(metadata.minimum_set)
    });
    needed.min().unwrap_or(metadata.minimum_set).min(metadata.active_set)
}
