//! A watch on the leader object, with a task that answers what is heard at once, whatever its owner is busy with.
//!
//! A daemon that leads answers everything. One that only listens leaves Ceph's heartbeats unanswered: a Ceph leader
//! takes everybody who answers them for an instance to which it can assign images, and would wait for ever for images
//! that it assigned to us.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rados::encoding::Decode;
use rados::{Error, IoCtx, NotifyAnswer, Result, Watch, WatchEvent};
use rbd::mirroring::LEADER_OBJECT;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::message::Message;

/// The cluster forgets a silent watcher after this time (`osd_client_watch_timeout`).
const WATCH_TIMEOUT: Duration = Duration::from_secs(30);

/// What was heard.
#[derive(Debug)]
pub enum Heard {
    /// A notification of another daemon.
    Message {
        /// What it says.
        message: Message,
        /// The sender's global id.
        sender: u64,
    },
    /// The watch broke.
    Lost(Error),
    /// The watch is back, with this cookie.
    Restored(u64),
}

/// A registered watch.
pub struct Ears {
    heard: mpsc::UnboundedReceiver<Heard>,
    /// Cookie of the watch.
    pub cookie: u64,
    leading: Arc<AtomicBool>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

impl Ears {
    /// Registers the watch for the client `instance_id`.
    pub async fn open(ioctx: &IoCtx, instance_id: u64) -> Result<Self> {
        let watch = ioctx.watch(LEADER_OBJECT, WATCH_TIMEOUT).await?;
        let cookie = watch.cookie;
        let leading = Arc::new(AtomicBool::new(false));
        let (sender, heard) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let listener =
            Listener { instance_id, leading: leading.clone(), heard: sender, unanswered: Vec::new() };
        let task = tokio::spawn(listener.run(watch, stopped));
        Ok(Ears { heard, cookie, leading, stop, task })
    }

    /// Answers everything from now on, as a leader does.
    pub fn lead(&self) {
        self.leading.store(true, Ordering::Relaxed);
    }

    /// What is heard next; `None` when the watch is gone for good. Cancel-safe.
    pub async fn hear(&mut self) -> Option<Heard> {
        let heard = self.heard.recv().await;
        if let Some(Heard::Restored(cookie)) = heard {
            self.cookie = cookie;
        }
        heard
    }

    /// Unregisters the watch.
    pub async fn close(self) -> Result<()> {
        // A task that is gone already has nothing left to stop.
        self.stop.send(()).ok();
        self.task.await.unwrap_or(Ok(()))
    }
}

struct Listener {
    instance_id: u64,
    leading: Arc<AtomicBool>,
    heard: mpsc::UnboundedSender<Heard>,
    unanswered: Vec<NotifyAnswer>,
}

impl Listener {
    /// Ends, and unregisters the watch, when told to or when its [`Ears`] are dropped.
    async fn run(mut self, mut watch: Watch, mut stopped: oneshot::Receiver<()>) -> Result<()> {
        loop {
            let event = tokio::select! {
                _ = &mut stopped => return watch.unregister().await,
                event = watch.next() => event,
            };
            let heard = match event {
                None => return Ok(()),
                Some(WatchEvent::Lost(error)) => Heard::Lost(error),
                Some(WatchEvent::Restored { cookie }) => Heard::Restored(cookie),
                Some(WatchEvent::Notify { payload, notifier, answer }) => {
                    let message = Message::from_bytes(&payload, "leader_watcher::NotifyMessage");
                    self.answer(message.as_ref().ok(), notifier, answer);
                    match message {
                        Ok(message) if notifier != self.instance_id => {
                            Heard::Message { message, sender: notifier }
                        }
                        Ok(_) => continue,
                        Err(e) => {
                            tracing::warn!(
                                "client.{notifier} notified {LEADER_OBJECT} of something odd: {e}"
                            );
                            continue;
                        }
                    }
                }
            };
            // Nobody listens any more only when `stop` is dropped too, which ends the loop.
            self.heard.send(heard).ok();
        }
    }

    fn answer(&mut self, message: Option<&Message>, notifier: u64, answer: NotifyAnswer) {
        let heartbeat = message == Some(&Message::Heartbeat) && notifier != self.instance_id;
        if heartbeat && !self.leading.load(Ordering::Relaxed) {
            self.unanswered.push(answer);
        }
    }
}
