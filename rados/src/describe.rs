//! Sentences about operations, for errors: "cannot …" and on what.

use crate::backend::Location;
use crate::op::{ReadOp, ReadSub, WriteOp, WriteSub};

/// Sub-operations that the sentence about a compound write names.
const NAMED_MAX: usize = 6;

/// "in pool 3", with the namespace when there is one.
pub(crate) fn in_location(location: &Location) -> String {
    if location.namespace.is_empty() {
        format!("in pool {}", location.pool)
    } else {
        format!("in pool {}, namespace '{}'", location.pool, location.namespace)
    }
}

/// About a read that failed; `failed` is the index of the sub-operation that did, when that is known.
pub(crate) fn read(op: &ReadOp, failed: Option<usize>, location: &Location) -> String {
    let sub = match failed {
        Some(index) => op.subs.get(index),
        None if op.subs.len() == 1 => op.subs.first(),
        None => None,
    };
    let verb = sub.map_or_else(|| "read".to_string(), read_verb);
    let snap = if op.snap.is_head() { String::new() } else { format!(" at snapshot {}", op.snap.0) };
    let snap = if matches!(sub, Some(ReadSub::ListSnaps)) { String::new() } else { snap };
    format!("cannot {verb} object '{}'{snap} {}", op.object, in_location(location))
}

fn read_verb(sub: &ReadSub) -> String {
    match sub {
        ReadSub::Read(_) | ReadSub::SparseRead(_) => "read".into(),
        ReadSub::Stat => "learn the size of".into(),
        ReadSub::Checksum { .. } => "checksum".into(),
        ReadSub::ListSnaps => "list the snapshots of".into(),
        ReadSub::ListWatchers => "list the watchers of".into(),
        ReadSub::GetXattr(name) => format!("read attribute '{name}' of"),
        ReadSub::OmapGet { .. } | ReadSub::OmapGetByKeys(_) => "read the omap of".into(),
        ReadSub::Exec { class, method, .. } => format!("call {class}.{method} on"),
        ReadSub::AssertExists => "read (it must exist)".into(),
        ReadSub::AssertVersion(version) => format!("read (it must be at version {version})"),
    }
}

/// About a write that failed.
pub(crate) fn write(op: &WriteOp, location: &Location) -> String {
    let place = in_location(location);
    if let [sub] = op.subs.as_slice() {
        return format!("cannot {} object '{}' {place}", write_verb(sub), op.object);
    }
    let mut parts: Vec<String> = op.subs.iter().take(NAMED_MAX).map(write_part).collect();
    if op.subs.len() > NAMED_MAX {
        parts.push("…".into());
    }
    format!("cannot change object '{}' {place} ({})", op.object, parts.join(", "))
}

/// About a write that is refused because `sub` has no bytes.
pub(crate) fn empty_range(op: &WriteOp, sub: &WriteSub, location: &Location) -> String {
    let verb = write_verb(sub);
    let place = in_location(location);
    format!(
        "cannot {verb} object '{}' {place}, as the range has no bytes: this is a bug, please report it",
        op.object
    )
}

fn write_verb(sub: &WriteSub) -> String {
    match sub {
        WriteSub::Create { .. } => "create".into(),
        WriteSub::Write { .. } | WriteSub::WriteFull(_) => "write".into(),
        WriteSub::Append(_) => "append to".into(),
        WriteSub::Zero(_) => "zero a range of".into(),
        WriteSub::Truncate(size) => format!("truncate to {size} bytes"),
        WriteSub::Remove => "remove".into(),
        WriteSub::Rollback(snap) => format!("roll back to snapshot {snap}"),
        WriteSub::AllocHint { .. } => "hint the size of".into(),
        WriteSub::SetXattr(name, _) => format!("set attribute '{name}' of"),
        WriteSub::RemoveXattr(name) => format!("remove attribute '{name}' of"),
        WriteSub::OmapSet(_) | WriteSub::OmapRemove(_) | WriteSub::OmapClear => "change the omap of".into(),
        WriteSub::Exec { class, method, .. } => format!("call {class}.{method} on"),
        WriteSub::AssertExists | WriteSub::AssertVersion(_) | WriteSub::CompareXattr(..) => "check".into(),
    }
}

/// A sub-operation in a list.
fn write_part(sub: &WriteSub) -> String {
    match sub {
        WriteSub::Create { exclusive: true } => "create it if it does not exist".into(),
        WriteSub::Create { exclusive: false } => "create".into(),
        WriteSub::Write { .. } => "write".into(),
        WriteSub::WriteFull(_) => "write all".into(),
        WriteSub::Append(_) => "append".into(),
        WriteSub::Zero(_) => "zero".into(),
        WriteSub::Truncate(_) => "truncate".into(),
        WriteSub::Remove => "remove".into(),
        WriteSub::Rollback(snap) => format!("roll back to snapshot {snap}"),
        WriteSub::AllocHint { .. } => "hint its size".into(),
        WriteSub::SetXattr(name, _) => format!("set attribute '{name}'"),
        WriteSub::RemoveXattr(name) => format!("remove attribute '{name}'"),
        WriteSub::OmapSet(_) => "set omap entries".into(),
        WriteSub::OmapRemove(_) => "remove omap entries".into(),
        WriteSub::OmapClear => "clear the omap".into(),
        WriteSub::Exec { class, method, .. } => format!("call {class}.{method}"),
        WriteSub::AssertExists => "it must exist".into(),
        WriteSub::AssertVersion(version) => format!("it must be at version {version}"),
        WriteSub::CompareXattr(name, _) => format!("attribute '{name}' must match"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Extent, PoolId, SnapId};

    #[test]
    fn sentences_name_operation_object_and_place() {
        let location = Location { pool: PoolId(3), namespace: "".into() };
        let inner = Location { pool: PoolId(3), namespace: "inner".into() };
        let op = ReadOp::new("a").exec("rbd", "get_size", &b""[..]).with(ReadSub::Stat);
        assert_eq!(read(&op, Some(0), &location), "cannot call rbd.get_size on object 'a' in pool 3");
        assert_eq!(
            read(&op.at(SnapId(7)), None, &inner),
            "cannot read object 'a' at snapshot 7 in pool 3, namespace 'inner'"
        );
        let op = WriteOp::new("b").with(WriteSub::Create { exclusive: true });
        assert_eq!(write(&op, &location), "cannot create object 'b' in pool 3");
        let op = op.with(WriteSub::Truncate(0));
        assert_eq!(
            write(&op, &location),
            "cannot change object 'b' in pool 3 (create it if it does not exist, truncate)"
        );
        assert!(op.empty_range().is_none());
        let op = op.with(WriteSub::Zero(Extent::new(0, 1))).with(WriteSub::Zero(Extent::new(5, 0)));
        let sub = op.empty_range().expect("a zero without a byte");
        assert_eq!(
            empty_range(&op, sub, &location),
            "cannot zero a range of object 'b' in pool 3, as the range has no bytes: this is a bug, please report it"
        );
    }
}
