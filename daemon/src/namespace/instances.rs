//! Taking images back from daemons to which an earlier leader had assigned them.
//!
//! A leader of Ceph's spreads the images over the daemons that answer it, and those go on with them when the leader
//! dies. Ours does all the work itself; so when it begins to lead, it asks every such daemon to release its images,
//! and waits for that, before its own tasks start. One that does not answer is left to the images' exclusive locks,
//! which no two daemons can hold.
//!
//! The assignment stands in the image map of `rbd_mirror_leader`; a daemon is told through its own object,
//! `rbd_mirror_instance.ID`:
//!
//! ```text
//! u8 version 2 · u8 compat 2 · u32 length · u32 operation (1: release image) · u64 request id · string global image id
//! ```
//!
//! It answers when it is done, with `string instance id of the asker · u64 request id · i32 result`.
//!
//! Reference: `src/tools/rbd_mirror/InstanceWatcher.cc`, `instance_watcher/Types.cc`.

use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use rados::encoding::{Decoder, Encoder};
use rados::{IoCtx, Result};
use rbd::mirroring::MirrorDaemons;

/// The operation.
const IMAGE_RELEASE: u32 = 1;
/// How long a daemon may take to stop working on an image, and how often it is asked.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 2;
/// Images taken back at once.
const CONCURRENCY: usize = 32;

/// Takes back all images of the namespace that were assigned to other daemons that live.
pub async fn take_back(ioctx: &IoCtx, own_instance_id: u64) -> Result<()> {
    let map = MirrorDaemons::new(ioctx).image_map().await?;
    let mut assigned: Vec<(String, String)> = Vec::new();
    let mut dead: Option<String> = None;
    for (global_id, entry) in map {
        let id = entry.instance_id;
        if id.is_empty() || id == own_instance_id.to_string() || dead.as_ref() == Some(&id) {
            continue;
        }
        let known = assigned.iter().any(|(instance, _)| *instance == id);
        if known || lives(ioctx, &id).await? {
            assigned.push((id, global_id.0));
        } else {
            dead = Some(id);
        }
    }
    if assigned.is_empty() {
        return Ok(());
    }
    tracing::info!("taking back {} images from other daemons", assigned.len());
    let releases = assigned.into_iter().zip(1..).map(async |((instance, image), request_id)| {
        if let Err(why) = release(ioctx, &instance, &image, request_id).await {
            tracing::warn!(
                "daemon {instance} did not release image {image}: {why}; its lock will be waited for"
            );
        }
    });
    stream::iter(releases).buffer_unordered(CONCURRENCY).collect::<()>().await;
    Ok(())
}

fn object(instance_id: &str) -> String {
    format!("rbd_mirror_instance.{instance_id}")
}

async fn lives(ioctx: &IoCtx, instance_id: &str) -> Result<bool> {
    match ioctx.list_watchers(&object(instance_id)).await {
        Ok(watchers) => Ok(!watchers.is_empty()),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
    }
}

async fn release(
    ioctx: &IoCtx,
    instance: &str,
    image: &str,
    request_id: u64,
) -> std::result::Result<(), String> {
    let message = encode_release(request_id, image);
    for _ in 0..ATTEMPTS {
        let reply = ioctx.notify(&object(instance), message.clone(), RELEASE_TIMEOUT).await;
        let reply = reply.map_err(|e| e.to_string())?;
        let mut results = reply.answers.iter().filter_map(|(_, _, answer)| result_of(answer, request_id));
        match results.next() {
            Some(0) => return Ok(()),
            Some(errno) => return Err(format!("it answers with error {errno}")),
            None => {}
        }
    }
    Err("it does not answer".to_string())
}

fn encode_release(request_id: u64, global_image_id: &str) -> bytes::Bytes {
    let mut e = Encoder::new();
    e.versioned(2, 2, |e| {
        e.u32(IMAGE_RELEASE).u64(request_id).string(global_image_id);
    });
    e.finish()
}

/// The result in an answer to our request; `None` when it answers something else.
fn result_of(answer: &[u8], request_id: u64) -> Option<i32> {
    let mut d = Decoder::new(answer, "instance_watcher::NotifyAckPayload");
    let _asker = d.string().ok()?;
    (d.u64().ok()? == request_id).then(|| d.i32().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_have_cephs_form() {
        let request = encode_release(7, "g");
        assert_eq!(&request[..], [2, 2, 17, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'g']);
        let answer = Encoder::new().string("4711").u64(7).i32(-2).finish();
        assert_eq!(result_of(&answer, 7), Some(-2));
        assert_eq!(result_of(&answer, 8), None);
        assert_eq!(result_of(&answer[..9], 7), None);
    }
}
