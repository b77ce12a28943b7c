//! Looks for images whose copies have another name than they: a rename of an image that nobody has open is announced to
//! nobody. Both directories are listed from time to time, a read per thousand images, and the tasks concerned are told,
//! once for each new name.

use std::collections::BTreeMap;
use std::time::Duration;

use rados::{ErrorClass, IoCtx, Result};
use rbd::directory;
use rbd::mirroring::{GlobalImageId, Mirroring};
use tokio::sync::mpsc;

/// How often the directories are listed.
const INTERVAL: Duration = Duration::from_secs(10);

/// Sends the global ids of images whose copies have another name, for as long as somebody listens.
pub async fn watch(local: IoCtx, remote: IoCtx, renamed: mpsc::Sender<String>) -> Result<()> {
    let mut told = BTreeMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let names = match futures::try_join!(names(&local), names(&remote)) {
            Ok(names) => names,
            Err(error) if error.class() == ErrorClass::Fenced => return Err(error),
            Err(error) => {
                tracing::debug!("cannot look for renamed images: {error}");
                continue;
            }
        };
        for (id, name) in differing(names.0, names.1, &mut told) {
            tracing::debug!(image = %id, "its primary is called '{name}'");
            if renamed.send(id).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Names of mirrored images by their global ids.
async fn names(ioctx: &IoCtx) -> Result<BTreeMap<GlobalImageId, String>> {
    let mirroring = Mirroring::new(ioctx);
    let (names, mut mirrored) = futures::try_join!(directory::list(ioctx), mirroring.image_ids())?;
    let named = names.into_iter().filter_map(|(name, id)| Some((mirrored.remove(&id)?, name)));
    Ok(named.collect())
}

/// The images whose names differ, with their remote names, as far as nobody was told of these yet.
fn differing(
    local: BTreeMap<GlobalImageId, String>,
    remote: BTreeMap<GlobalImageId, String>,
    told: &mut BTreeMap<GlobalImageId, String>,
) -> Vec<(String, String)> {
    let differ = |id: &GlobalImageId, name: &String| local.get(id).is_some_and(|ours| ours != name);
    let differing: BTreeMap<_, _> = remote.into_iter().filter(|(id, name)| differ(id, name)).collect();
    let new = differing.iter().filter(|(id, name)| told.get(*id) != Some(*name));
    let new = new.map(|(id, name)| (id.0.clone(), name.clone())).collect();
    *told = differing;
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_new_name_is_told_once() {
        let names = |names: &[(&str, &str)]| {
            names.iter().map(|(id, name)| (GlobalImageId(id.to_string()), name.to_string())).collect()
        };
        let told = &mut BTreeMap::new();
        let local = || names(&[("1", "a"), ("2", "b")]);
        assert_eq!(differing(local(), names(&[("1", "a"), ("2", "b"), ("3", "c")]), told), []);
        let swapped = names(&[("1", "b"), ("2", "a")]);
        let both = [("1".to_string(), "b".to_string()), ("2".to_string(), "a".to_string())];
        assert_eq!(differing(local(), swapped.clone(), told), both);
        assert_eq!(differing(local(), swapped, told), []);
        let again = [("1".to_string(), "d".to_string())];
        assert_eq!(differing(local(), names(&[("1", "d"), ("2", "b")]), told), again);
        assert_eq!(told.len(), 1);
    }
}
