//! Which requests suffer what: plans, as values.

use std::fmt;
use std::time::Duration;

use crate::op::{ReadOp, ReadSub, WriteOp, WriteSub};

/// What a request is, as far as faults and counts tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OperationKind {
    /// [`crate::Backend::read`].
    Read,
    /// [`crate::Backend::write`].
    Write,
    /// [`crate::Backend::snap_create`].
    SnapCreate,
    /// [`crate::Backend::snap_remove`].
    SnapRemove,
    /// [`crate::Backend::list_objects`].
    List,
    /// [`crate::Backend::watch`].
    Watch,
    /// [`crate::Backend::notify`].
    Notify,
    /// [`crate::Backend::command`].
    Command,
    /// Everything else that asks the cluster.
    Other,
}

/// Which objects a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectPattern {
    /// The object of this name.
    Named(String),
    /// Objects whose name starts so.
    Prefix(String),
}

/// Which requests a rule counts: those that agree with everything that is given. The default counts all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Matcher {
    /// What it is.
    pub kind: Option<OperationKind>,
    /// What it is not.
    pub other_than: Option<OperationKind>,
    /// On which object; requests that have none don't match.
    pub object: Option<ObjectPattern>,
    /// A class method that the operation calls, as `class.method`.
    pub method: Option<String>,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this (positive) error number and does not reach the cluster.
    Fail(i32),
    /// It reaches the cluster so much later.
    Delay(Duration),
    /// It reaches the cluster when [`super::Faulty::release`] is called.
    Hold,
    /// It is under way so long before it is carried out, also when nobody waits for it any more: it was sent to an OSD
    /// that stands still.
    Late(Duration),
    /// It is carried out, and its answer is lost: it fails with the error number, or never answers.
    LoseAnswer(Option<i32>),
    /// The process crashes before this request reaches the cluster.
    CrashBefore,
    /// The process crashes when this request was carried out, before its answer arrives.
    CrashAfter,
}

/// A fault at some of the requests that match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which requests count.
    pub matcher: Matcher,
    /// The first one to suffer, counted from 1.
    pub nth: u64,
    /// How many in a row suffer; `u64::MAX` for all from then on.
    pub times: u64,
    /// What they suffer.
    pub fault: Fault,
}

/// Faults to come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultPlan {
    /// Rules, the most important first.
    pub rules: Vec<Rule>,
}

impl FaultPlan {
    /// No faults: only counts.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a fault at the `nth` request that matches.
    pub fn at(mut self, nth: u64, matcher: Matcher, fault: Fault) -> Self {
        self.rules.push(Rule { matcher, nth, times: 1, fault });
        self
    }

    /// Adds a fault at every request that matches, from the `nth` on.
    pub fn from(mut self, nth: u64, matcher: Matcher, fault: Fault) -> Self {
        self.rules.push(Rule { matcher, nth, times: u64::MAX, fault });
        self
    }

    /// A crash before or after one of the first `requests` requests (at least 1), drawn from `seed`.
    pub fn seeded_crash(seed: u64, requests: u64) -> Self {
        let mut random = SplitMix64(seed);
        let nth = 1 + random.below(requests.max(1));
        let fault = if random.below(2) == 0 { Fault::CrashBefore } else { Fault::CrashAfter };
        Self::none().at(nth, Matcher::default(), fault)
    }

    /// `faults` faults of all kinds but crashes, among the first `requests` requests (at least 1), drawn from `seed`.
    /// Errors are transient ones; delays last up to 50 ms; lost answers are reported as ETIMEDOUT.
    pub fn seeded(seed: u64, requests: u64, faults: usize) -> Self {
        let mut random = SplitMix64(seed);
        let mut plan = Self::none();
        for _ in 0..faults {
            let nth = 1 + random.below(requests.max(1));
            let fault = match random.below(3) {
                0 => Fault::Fail([libc::ETIMEDOUT, libc::EAGAIN, libc::EBUSY][random.below(3) as usize]),
                1 => Fault::Delay(Duration::from_millis(1 + random.below(50))),
                _ => Fault::LoseAnswer(Some(libc::ETIMEDOUT)),
            };
            plan = plan.at(nth, Matcher::default(), fault);
        }
        plan
    }
}

/// The generator SplitMix64 (public domain, Vigna): small, and the same everywhere.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

impl Matcher {
    /// Requests of one kind.
    pub fn kind(kind: OperationKind) -> Self {
        Matcher { kind: Some(kind), ..Self::default() }
    }

    /// Requests of all kinds but one.
    pub fn other_than(kind: OperationKind) -> Self {
        Matcher { other_than: Some(kind), ..Self::default() }
    }

    /// Operations that call `class.method`.
    pub fn method(method: &str) -> Self {
        Matcher { method: Some(method.to_string()), ..Self::default() }
    }

    /// The same, on objects whose name starts with `prefix` only.
    pub fn on_prefix(mut self, prefix: &str) -> Self {
        self.object = Some(ObjectPattern::Prefix(prefix.to_string()));
        self
    }

    pub(super) fn matches(&self, request: &Request) -> bool {
        let object = match (&self.object, &request.object) {
            (None, _) => true,
            (Some(ObjectPattern::Named(name)), Some(object)) => object == name,
            (Some(ObjectPattern::Prefix(prefix)), Some(object)) => object.starts_with(prefix),
            (Some(_), None) => false,
        };
        object
            && self.kind.is_none_or(|kind| kind == request.kind)
            && self.other_than != Some(request.kind)
            && self.method.as_ref().is_none_or(|method| request.methods.contains(method))
    }
}

/// What is known of a request before it is made.
pub(super) struct Request {
    pub(super) kind: OperationKind,
    pub(super) object: Option<String>,
    pub(super) methods: Vec<String>,
    pub(super) bytes: u64,
}

impl Request {
    pub(super) fn new(kind: OperationKind, object: Option<&str>) -> Request {
        Request { kind, object: object.map(str::to_string), methods: Vec::new(), bytes: 0 }
    }

    pub(super) fn read(op: &ReadOp) -> Request {
        let methods = op.subs.iter().filter_map(|sub| match sub {
            ReadSub::Exec { class, method, .. } => Some(format!("{class}.{method}")),
            _ => None,
        });
        Request { methods: methods.collect(), ..Request::new(OperationKind::Read, Some(&op.object)) }
    }

    pub(super) fn write(op: &WriteOp) -> Request {
        let methods = op.subs.iter().filter_map(|sub| match sub {
            WriteSub::Exec { class, method, .. } => Some(format!("{class}.{method}")),
            _ => None,
        });
        let bytes = op.payload_bytes();
        Request { methods: methods.collect(), bytes, ..Request::new(OperationKind::Write, Some(&op.object)) }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "carry out a request of kind {:?}", self.kind)?;
        match &self.object {
            Some(object) => write!(f, " on object '{object}'"),
            None => Ok(()),
        }
    }
}
