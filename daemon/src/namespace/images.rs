//! The image tasks of a namespace: started, ended, and started again.

use rbd::mirroring::StatusState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rados::{Error, Result};
use tokio::sync::Notify;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::NamespaceContext;
use crate::control::{ImageKey, Orders};
use crate::image::{self, ImageContext, Outcome};
use crate::report::Report;
use crate::retry::Backoff;

/// The shortest pause before a task that ended by itself is started again.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// How long the remote pool may take to say at the end what is wrong with it.
const TROUBLE_TIMEOUT: Duration = Duration::from_secs(1);
/// A task that ran for so long is no relapse.
const STEADY: Duration = Duration::from_secs(60);

/// All image tasks of one namespace.
pub struct Images {
    ctx: NamespaceContext,
    images: BTreeMap<Arc<str>, Image>,
    tasks: JoinSet<Outcome>,
    by_task: HashMap<Id, Arc<str>>,
    orders: Orders,
    begun: bool,
}

struct Image {
    phase: Phase,
    /// Wakes its task.
    changed: Arc<Notify>,
    /// Whether it is listed locally and remotely.
    listed: (bool, bool),
    backoff: Backoff,
}

enum Phase {
    Running { cancel: CancellationToken, since: Instant },
    Waiting { until: Instant },
    Stopped,
}

impl Images {
    /// No tasks yet.
    pub fn new(ctx: NamespaceContext) -> Self {
        Images {
            ctx,
            images: BTreeMap::new(),
            tasks: JoinSet::new(),
            by_task: HashMap::new(),
            orders: Orders::default(),
            begun: false,
        }
    }

    /// Allows tasks to be started: both lists are known. True the first time.
    pub fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.begun, true)
    }

    /// Starts what is listed and due, ends what is listed nowhere.
    pub fn reconcile(&mut self, local: &BTreeSet<String>, remote: &BTreeSet<String>) {
        if !self.begun {
            return;
        }
        for id in local.union(remote) {
            if !self.images.contains_key(id.as_str()) {
                let image = Image {
                    phase: Phase::Waiting { until: Instant::now() },
                    changed: Arc::default(),
                    listed: (local.contains(id), remote.contains(id)),
                    backoff: Backoff::new(RETRY_MIN, self.ctx.retry_interval_max.max(RETRY_MIN)),
                };
                self.images.insert(id.as_str().into(), image);
            }
        }
        let (mut due, mut forgotten) = (Vec::new(), Vec::new());
        for (id, image) in &mut self.images {
            let listed = (local.contains(&**id), remote.contains(&**id));
            if std::mem::replace(&mut image.listed, listed) != listed {
                image.changed.notify_one();
            }
            let gone = listed == (false, false);
            match &image.phase {
                Phase::Running { cancel, .. } if gone => cancel.cancel(),
                Phase::Running { .. } => {}
                _ if gone => forgotten.push(id.clone()),
                Phase::Waiting { until } if *until <= Instant::now() => due.push(id.clone()),
                Phase::Waiting { .. } | Phase::Stopped => {}
            }
        }
        for id in forgotten {
            self.images.remove(&id);
            self.ctx.reports.close(&id);
        }
        for id in due {
            self.start(id);
        }
    }

    /// An image changed (or any may have): its task is told, or started again if it waits for that.
    pub fn announced(&mut self, global_image_id: Option<String>) {
        let wake = |image: &mut Image| {
            image.changed.notify_one();
            if let Phase::Waiting { until } = &mut image.phase {
                *until = Instant::now();
                image.backoff.reset();
            }
        };
        match global_image_id {
            Some(id) => self.images.get_mut(id.as_str()).into_iter().for_each(wake),
            None => self.images.values_mut().for_each(wake),
        }
    }

    /// Follows an operator's orders.
    pub fn obey(&mut self, orders: Orders) {
        let before = std::mem::replace(&mut self.orders, orders);
        let ids: Vec<Arc<str>> = self.images.keys().cloned().collect();
        for id in ids {
            let key = self.key(&id);
            let restarted = before.restarts != self.orders.restarts
                || before.image_restarts.get(&key) != self.orders.image_restarts.get(&key);
            let stopped = self.is_stopped(&key);
            let Some(image) = self.images.get_mut(&id) else {
                continue;
            };
            match &mut image.phase {
                Phase::Running { cancel, .. } if stopped || restarted => cancel.cancel(),
                Phase::Waiting { .. } if stopped => self.stop(&id),
                Phase::Waiting { until } if restarted => *until = Instant::now(),
                Phase::Stopped if !stopped => image.phase = Phase::Waiting { until: Instant::now() },
                _ => {}
            }
        }
    }

    /// Waits for a task to end, and judges how it did; `None` when there are none. Fails when the whole pool must be
    /// started over. Cancel-safe.
    pub async fn ended(&mut self) -> Option<Result<()>> {
        let (task, outcome) = match self.tasks.join_next_with_id().await? {
            Ok((task, outcome)) => (task, Ok(outcome)),
            Err(e) => (e.id(), Err(e)),
        };
        let id = self.by_task.remove(&task)?;
        if let Ok(Outcome::Fenced) = outcome {
            return Some(Err(Error::new(libc::ESHUTDOWN, format!("image {id} cannot be mirrored any more"))));
        }
        if let Err(e) = &outcome {
            tracing::error!("the task of image {id} broke: {e}; this is a bug, please report it");
            self.reopen(&id, StatusState::Error, "internal error; see the daemon's log");
        }
        let key = self.key(&id);
        if self.is_stopped(&key) {
            self.stop(&id);
        } else if let Some(image) = self.images.get_mut(&id) {
            let told = match &image.phase {
                Phase::Running { cancel, since } => {
                    if since.elapsed() >= STEADY {
                        image.backoff.reset();
                    }
                    cancel.is_cancelled()
                }
                _ => false,
            };
            let pause = if told { Duration::ZERO } else { image.backoff.next_delay() };
            image.phase = Phase::Waiting { until: Instant::now() + pause };
        }
        Some(Ok(()))
    }

    /// Ends all tasks and waits for them. Images then report that they are stopped, unless they failed before or
    /// something is wrong with the remote cluster or pool: that is what they say then.
    pub async fn end(&mut self) {
        let before: HashMap<_, _> = self.ctx.reports.current().into_iter().collect();
        for image in self.images.values() {
            if let Phase::Running { cancel, .. } = &image.phase {
                cancel.cancel();
            }
        }
        let (remote, uuid) = (&self.ctx.remote, &self.ctx.remote_pool.mirror_uuid);
        let all_ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(e) = ended {
                    tracing::error!("the task of an image broke: {e}; this is a bug, please report it");
                }
            }
        };
        let (_, trouble) = tokio::join!(all_ended, timeout(TROUBLE_TIMEOUT, image::trouble(remote, uuid)));
        if let Ok(Ok(Some(why))) = trouble {
            self.ctx.reports.set_trouble(Some(why));
        }
        for (id, report) in self.ctx.reports.current() {
            // What the image depended on before its task was told to end.
            let trouble = before.get(&id).and_then(|before| self.ctx.reports.trouble_of(before));
            match trouble {
                _ if report.state == StatusState::Error => {}
                Some(why) => self.reopen(&id, StatusState::Error, &why),
                None => self.reopen(&id, StatusState::Stopped, "stopped"),
            }
        }
    }

    fn start(&mut self, id: Arc<str>) {
        if self.is_stopped(&self.key(&id)) {
            return self.stop(&id);
        }
        let Some(image) = self.images.get_mut(&id) else {
            return;
        };
        let cancel = CancellationToken::new();
        image.phase = Phase::Running { cancel: cancel.clone(), since: Instant::now() };
        let report = match self.ctx.reports.get(&id) {
            // An image that is started again keeps its last words until it has new ones.
            Some(last) => self.ctx.reports.open(&id, last),
            None => self.ctx.reports.open(&id, Report::default()),
        };
        let ctx = ImageContext {
            local: self.ctx.local.clone(),
            remote: self.ctx.remote.clone(),
            local_mirror_uuid: self.ctx.local_mirror_uuid.clone(),
            remote_mirror_uuid: self.ctx.remote_pool.mirror_uuid.clone(),
            remote_peer_uuid: self.ctx.remote_pool.peer_uuid.clone(),
            local_peer_uuid: self.ctx.local_peer_uuid.clone(),
            global_image_id: id.clone(),
            shared: self.ctx.shared.clone(),
            delete_delay: self.ctx.delete_delay,
            object_map_trust: self.ctx.object_map_trust,
            journal: self.ctx.journal.clone(),
            changed: image.changed.clone(),
            report,
            flushes: self.ctx.reports.flushes(&id),
            cancel,
        };
        let task = self.tasks.spawn(image::run(ctx));
        self.by_task.insert(task.id(), id);
    }

    fn stop(&mut self, id: &Arc<str>) {
        if let Some(image) = self.images.get_mut(id) {
            image.phase = Phase::Stopped;
        }
        self.reopen(id, StatusState::Stopped, "stopped");
    }

    /// Reports on behalf of an image that has no task.
    fn reopen(&self, id: &Arc<str>, state: StatusState, description: &str) {
        let image_name = self.ctx.reports.get(id).map(|last| last.image_name).unwrap_or_default();
        self.ctx.reports.open(id, Report { image_name, ..Report::new(state, description) });
    }

    fn key(&self, id: &Arc<str>) -> ImageKey {
        (self.ctx.local.namespace().to_string(), id.clone())
    }

    fn is_stopped(&self, key: &ImageKey) -> bool {
        self.orders.stopped || self.orders.stopped_images.contains(key)
    }
}
