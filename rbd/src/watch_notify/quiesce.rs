//! Asking all who have an image open to stop writing while a snapshot is made.
//!
//! Whoever cannot stop at once answers late; the question is then asked again under the same request id, a few times.
//! One who answers with an error keeps the snapshot from being made, unless the maker does not care. EOPNOTSUPP is no
//! error: he does not know the question.
//!
//! Reference: `src/librbd/ImageWatcher.cc` (`notify_quiesce`), `src/librbd/operation/SnapshotCreateRequest.cc`.

use rados::encoding::Decode;
use rados::error::ResultExt;
use rados::{Error, IoCtx, NotifyReply, Result};

use super::{AsyncRequestId, Notification, Response, notify};
use crate::types::ImageId;

/// How often the question is asked unless configured (`rbd_quiesce_notification_attempts`).
pub const QUIESCE_ATTEMPTS: u32 = 10;

/// Asks all who have `image` open to stop writing, at most `attempts` times. `request` must be new, and be given to
/// [`unquiesce`] afterwards, also when this fails: ETIMEDOUT when somebody stays silent, else what somebody answered.
pub async fn quiesce(ioctx: &IoCtx, image: &ImageId, request: AsyncRequestId, attempts: u32) -> Result<()> {
    let what = || format!("cannot quiesce image {image}");
    let mut attempt = 0;
    loop {
        attempt += 1;
        let reply = notify(ioctx, image, &Notification::Quiesce(request)).await.context(what())?;
        if reply.silent.is_empty() {
            return check_answers(&reply).context(what());
        }
        if attempt >= attempts {
            let why = format!("{} clients that have it open do not answer", reply.silent.len());
            return Err(Error::new(libc::ETIMEDOUT, why).context(what()));
        }
    }
}

/// Lets everybody write again.
pub async fn unquiesce(ioctx: &IoCtx, image: &ImageId, request: AsyncRequestId) -> Result<()> {
    notify(ioctx, image, &Notification::Unquiesce(request)).await.map(drop)
}

fn check_answers(reply: &NotifyReply) -> Result<()> {
    for (client, _, payload) in reply.answers.iter().filter(|(_, _, payload)| !payload.is_empty()) {
        let refuse = |errno| Err(Error::new(errno, format!("client.{client} does not stop writing")));
        match Response::from_bytes(payload, "answer to a header notification") {
            Ok(Response { result }) if result < 0 && result != -libc::EOPNOTSUPP => return refuse(result),
            Ok(_) => {}
            Err(_) => return refuse(libc::EINVAL),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rados::encoding::Encode;

    use super::*;

    fn answered(payloads: &[Bytes]) -> NotifyReply {
        let answers = payloads.iter().map(|payload| (7, 1, payload.clone())).collect();
        NotifyReply { answers, silent: vec![] }
    }

    #[test]
    fn one_who_refuses_is_enough() {
        let [well, unknown, refused] =
            [0, -libc::EOPNOTSUPP, -libc::EIO].map(|r| Response { result: r }.to_bytes());
        let (nothing, garbage) = (Bytes::new(), Bytes::from_static(b"?"));
        assert_eq!(check_answers(&answered(&[well.clone(), unknown, nothing])), Ok(()));
        assert!(check_answers(&answered(&[well.clone(), refused])).unwrap_err().is(libc::EIO));
        assert!(check_answers(&answered(&[well, garbage])).unwrap_err().is(libc::EINVAL));
    }
}
