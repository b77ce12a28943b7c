use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::object_map::ObjectMap;

/// What happens to an image with fast-diff.
#[derive(Debug, Clone)]
enum Event {
    Write(u64),
    Remove(u64),
    Resize(u64),
    Snapshot,
    RemoveSnapshot(prop::sample::Index),
}

/// A version as it is known without object maps: for each object, the number of the last write to it.
type Content = Vec<Option<u32>>;

/// An image whose object map is kept as librbd keeps it, and whose content is known besides.
#[derive(Debug)]
struct Image {
    map: ObjectMap,
    content: Content,
    writes: u32,
    /// Snapshots still there, oldest first; the number is the snapshot's.
    snapshots: BTreeMap<u32, (ObjectMap, Content)>,
    /// Every snapshot ever, for what existed in between.
    snapshots_made: u32,
}

impl Image {
    fn new(objects: u64) -> Image {
        Image {
            map: ObjectMap::new(objects),
            content: vec![None; objects as usize],
            writes: 0,
            snapshots: BTreeMap::new(),
            snapshots_made: 0,
        }
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Write(object) if *object < self.map.len() => {
                self.writes += 1;
                self.content[*object as usize] = Some(self.writes);
                self.map.set(ObjectNumber(*object), ObjectState::Exists);
            }
            Event::Remove(object) if *object < self.map.len() => {
                self.content[*object as usize] = None;
                self.map.set(ObjectNumber(*object), ObjectState::NonExistent);
            }
            Event::Write(_) | Event::Remove(_) => {}
            Event::Resize(objects) => {
                self.content.resize(*objects as usize, None);
                self.map.resize(*objects);
            }
            Event::Snapshot => {
                self.snapshots.insert(self.snapshots_made, (self.map.clone(), self.content.clone()));
                self.snapshots_made += 1;
                self.map.snap_add();
            }
            Event::RemoveSnapshot(which) => {
                let numbers: Vec<u32> = self.snapshots.keys().copied().collect();
                if numbers.is_empty() {
                    return;
                }
                let number = *which.get(&numbers);
                let Some((removed, _)) = self.snapshots.remove(&number) else { return };
                match self.snapshots.range_mut(number..).next() {
                    Some((_, (next, _))) => next.snap_remove(&removed),
                    None => self.map.snap_remove(&removed),
                }
            }
        }
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (0u64..24).prop_map(Event::Write),
        3 => (0u64..24).prop_map(Event::Remove),
        1 => (0u64..24).prop_map(Event::Resize),
        3 => Just(Event::Snapshot),
        1 => any::<prop::sample::Index>().prop_map(Event::RemoveSnapshot),
    ];
    prop::collection::vec(event, 0..80)
}

fn version(map: &ObjectMap) -> FastDiffVersion {
    FastDiffVersion { map: map.clone() }
}

fn at(content: &Content, object: usize) -> Option<u32> {
    content.get(object).copied().flatten()
}

fn check(
    start: Option<&(ObjectMap, Content)>,
    between: &[&(ObjectMap, Content)],
) -> std::result::Result<(), TestCaseError> {
    let versions: Vec<_> = between.iter().map(|(map, _)| version(map)).collect();
    let states = diff(start.map(|(map, _)| version(map)).as_ref(), &versions);
    let nothing = Content::new();
    let from = start.map_or(&nothing, |(_, content)| content);
    let to = between.last().map_or(from, |(_, content)| content);
    let longest = between.iter().map(|(_, c)| c.len()).chain([from.len()]).max().unwrap_or(0);
    prop_assert_eq!(states.len(), longest);
    for (object, state) in states.into_iter().enumerate() {
        let existed_between = between.iter().any(|(_, content)| at(content, object).is_some());
        let expected = match (at(from, object), at(to, object)) {
            (None, None) if existed_between => Diff::Removed,
            (None, None) => Diff::Hole,
            (Some(_), None) => Diff::Removed,
            (before, after) if before == after => Diff::Unchanged,
            _ => Diff::Updated,
        };
        prop_assert_eq!(state, expected, "object {}", object);
    }
    Ok(())
}

proptest! {
    /// Between any two versions, through whatever snapshots are left, the maps tell exactly what changed.
    #[test]
    fn agrees_with_the_content(objects in 0u64..24, events in events()) {
        let mut image = Image::new(objects);
        for event in &events {
            image.happen(event);
        }
        let head = (image.map.clone(), image.content.clone());
        let versions: Vec<_> = image.snapshots.values().chain([&head]).collect();
        for end in 0..versions.len() {
            check(None, &versions[..=end])?;
            for start in 0..end {
                check(Some(versions[start]), &versions[start + 1..=end])?;
            }
        }
    }
}

#[test]
fn maps_not_to_be_believed_are_refused() {
    let layout = Layout::simple(22).unwrap();
    let all = Features::FAST_DIFF.with(Features::OBJECT_MAP);
    let make = |features, flags, map| FastDiffVersion::new(features, flags, &layout, 9 << 20, map);
    let none = ImageFlags::default();
    assert!(make(all, none, ObjectMap::new(3)).is_ok());
    assert!(make(all, none, ObjectMap::new(2)).is_err());
    assert!(make(Features::OBJECT_MAP, none, ObjectMap::new(3)).is_err());
    assert!(make(all, ImageFlags::FAST_DIFF_INVALID, ObjectMap::new(3)).is_err());
    assert!(make(all, ImageFlags::OBJECT_MAP_INVALID, ObjectMap::new(3)).is_err());
    // Objects behind the end of the image do not count, whatever the map says.
    let mut longer = ObjectMap::new(5);
    longer.set(ObjectNumber(4), ObjectState::Exists);
    assert_eq!(diff(None, &[make(all, none, longer).unwrap()]), [Diff::Hole; 3]);
}

#[test]
fn an_object_half_removed_at_the_start_is_looked_at() {
    let mut map = ObjectMap::new(1);
    map.set(ObjectNumber(0), ObjectState::Pending);
    let start = version(&map);
    map.set(ObjectNumber(0), ObjectState::ExistsClean);
    assert_eq!(diff(Some(&start), &[version(&map)]), [Diff::Updated]);
}
