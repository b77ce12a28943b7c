//! Every rule of the plan, on journals written down by hand. `a` is the local pool, `b` the remote one.

use std::collections::BTreeMap;

use super::*;
use crate::types::{EntryPosition, EntryTid, TagPredecessor};

const A: &str = "uuid-of-a";
const B: &str = "uuid-of-b";
const LOCAL: &str = LOCAL_MIRROR_UUID;
const ORPHAN: &str = ORPHAN_MIRROR_UUID;

/// A tag: who writes, who wrote before, and up to which entry of which tag.
fn tag(owner: &str, before: &str, commit: Option<(u64, u64)>) -> TagData {
    let commit = commit.map(|(tag, entry)| EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) });
    TagData { mirror_uuid: owner.into(), predecessor: TagPredecessor { mirror_uuid: before.into(), commit } }
}

fn peer(image: &str, state: MirrorPeerState) -> MirrorPeer {
    MirrorPeer {
        image: ImageId(image.into()),
        state,
        sync_object_count: 0,
        sync_points: Vec::new(),
        snap_seqs: BTreeMap::new(),
    }
}

/// A pair of images with an ordinary copy, to be changed.
struct Pair {
    image: Option<ImageId>,
    tag: TagData,
    resync_requested: bool,
    tags: Vec<(TagTid, TagData)>,
    client: Option<(ClientState, Option<MirrorPeer>)>,
    resync_after_disconnect: bool,
}

impl Pair {
    /// A copy in the middle of replay.
    fn replaying() -> Pair {
        Pair {
            image: Some(ImageId("copy".into())),
            tag: tag(B, B, Some((3, 7))),
            resync_requested: false,
            tags: vec![
                (TagTid(3), tag(LOCAL, LOCAL, Some((2, 1)))),
                (TagTid(4), tag(LOCAL, LOCAL, Some((3, 9)))),
            ],
            client: Some((ClientState::Connected, Some(peer("copy", MirrorPeerState::Replaying)))),
            resync_after_disconnect: false,
        }
    }

    fn with_local(self, tag: TagData) -> Pair {
        Pair { tag, ..self }
    }

    fn with_remote(self, tags: impl IntoIterator<Item = (u64, TagData)>) -> Pair {
        Pair { tags: tags.into_iter().map(|(tid, tag)| (TagTid(tid), tag)).collect(), ..self }
    }

    fn with_client(self, state: ClientState, image: &str, peer_state: MirrorPeerState) -> Pair {
        Pair { client: Some((state, Some(peer(image, peer_state)))), ..self }
    }

    fn plan(&self) -> Plan {
        let local = |image| LocalView { image, tag: &self.tag, resync_requested: self.resync_requested };
        let client =
            self.client.as_ref().map(|(state, peer)| PeerView { state: *state, peer: peer.as_ref() });
        plan(&View {
            local_mirror_uuid: A,
            remote_mirror_uuid: B,
            local: self.image.as_ref().map(local),
            remote: RemoteView { tags: &self.tags, client },
            resync_after_disconnect: self.resync_after_disconnect,
        })
    }

    fn expect(&self, expected: Plan) {
        assert_eq!(self.plan(), expected);
    }

    fn expect_split_brain(&self, word: &str) {
        match self.plan() {
            Plan::Stop(Stop::SplitBrain(why)) => assert!(why.contains(word), "{why}"),
            other => panic!("no split-brain, but {other:?}"),
        }
    }
}

const FINE: Plan = Plan::Replay(Registration::Fine);

fn demoted(tid: u64) -> (u64, TagData) {
    (tid, tag(ORPHAN, LOCAL, Some((tid - 1, 5))))
}

#[test]
fn a_local_image_is_made_only_of_a_primary() {
    let pair = Pair { image: None, client: None, ..Pair::replaying() };
    pair.expect(Plan::Create);
    pair.with_remote([demoted(4)]).expect(Plan::Stop(Stop::RemoteNotPrimary));
    Pair { image: None, tags: Vec::new(), ..Pair::replaying() }.expect(Plan::Stop(Stop::RemoteNotPrimary));
}

#[test]
fn a_primary_is_left_alone() {
    let primary =
        Pair { resync_requested: true, ..Pair::replaying().with_local(tag(LOCAL, LOCAL, Some((1, 1)))) };
    primary.expect(Plan::Stop(Stop::LocalPrimary));
}

#[test]
fn a_linked_copy_replays_even_the_demotion_of_its_primary() {
    Pair::replaying().expect(FINE);
    Pair::replaying().with_remote([(4, tag(LOCAL, LOCAL, Some((3, 9)))), demoted(5)]).expect(FINE);
    // As it was made: the first tag knows of none before.
    Pair::replaying().with_local(tag(B, LOCAL, None)).expect(FINE);
}

#[test]
fn an_unlinked_copy_waits_for_a_primary() {
    let orphan = Pair::replaying().with_local(tag(ORPHAN, B, Some((4, 5))));
    orphan.with_remote([demoted(5)]).expect(Plan::Stop(Stop::RemoteNotPrimary));
}

#[test]
fn a_client_is_registered_when_there_is_none() {
    let missing = |promoted_in| Plan::Replay(Registration::Missing { promoted_in });
    Pair { client: None, ..Pair::replaying() }.expect(missing(None));
    let demoted = Pair::replaying().with_local(tag(ORPHAN, LOCAL, Some((5, 2))));
    let remote = [(9, tag(ORPHAN, A, Some((5, 2)))), (10, tag(LOCAL, ORPHAN, Some((9, 1))))];
    Pair { client: None, ..demoted.with_remote(remote) }.expect(missing(Some(TagTid(10))));
    let strange = Pair { client: Some((ClientState::Connected, None)), ..Pair::replaying() };
    strange.expect(Plan::Stop(Stop::StrangeClient));
}

#[test]
fn a_first_copy_goes_on_while_it_is_tied_to_the_remote() {
    let syncing = || Pair::replaying().with_client(ClientState::Connected, "copy", MirrorPeerState::Syncing);
    syncing().expect(Plan::FirstCopy);
    syncing().with_local(tag(B, LOCAL, None)).expect(Plan::FirstCopy);
    // Promoted by force half-way, then demoted: a history of its own.
    syncing().with_local(tag(ORPHAN, LOCAL, Some((9, 1)))).expect_split_brain("demotion");
    // Demoted by the primary that it now follows again.
    syncing()
        .with_local(tag(ORPHAN, B, Some((4, 5))))
        .with_remote([demoted(5), (6, tag(LOCAL, ORPHAN, Some((5, 1))))])
        .expect(Plan::Replay(Registration::NoLongerSyncing));
}

#[test]
fn another_image_in_the_client_is_a_split_brain_that_a_resync_mends() {
    let other = || Pair::replaying().with_client(ClientState::Connected, "other", MirrorPeerState::Replaying);
    other().expect_split_brain("'other'");
    Pair { resync_requested: true, ..other() }.expect(Plan::Resync(Resync::Requested));
}

#[test]
fn a_resync_waits_for_a_primary() {
    let asked = || Pair { resync_requested: true, ..Pair::replaying() };
    asked().expect(Plan::Resync(Resync::Requested));
    asked()
        .with_client(ClientState::Connected, "copy", MirrorPeerState::Syncing)
        .expect(Plan::Resync(Resync::Requested));
    asked().with_local(tag(ORPHAN, LOCAL, Some((9, 1)))).expect(Plan::Resync(Resync::Requested));
    // Two that are demoted might be brought in line with each other.
    let waits = Plan::Stop(Stop::ResyncAwaitsPrimary);
    let demoted_too = asked().with_remote([demoted(4)]);
    demoted_too.with_local(tag(ORPHAN, LOCAL, Some((9, 1)))).expect(waits.clone());
    // It follows another one.
    asked().with_remote([(4, tag("uuid-of-c", "uuid-of-c", Some((2, 1))))]).expect(waits);
}

#[test]
fn a_copy_is_brought_in_line_with_the_primary_that_was_demoted_meanwhile() {
    let asked = || Pair { resync_requested: true, ..Pair::replaying().with_remote([demoted(4)]) };
    let resync = Plan::Resync(Resync::Requested);
    asked().expect(resync.clone());
    asked().with_client(ClientState::Connected, "copy", MirrorPeerState::Syncing).expect(resync.clone());
    asked().with_client(ClientState::Disconnected, "copy", MirrorPeerState::Replaying).expect(resync);
}

#[test]
fn a_disconnected_client_stops_or_starts_over() {
    let gone = |state| Pair::replaying().with_client(ClientState::Disconnected, "copy", state);
    for state in [MirrorPeerState::Replaying, MirrorPeerState::Syncing] {
        gone(state).expect(Plan::Stop(Stop::Disconnected));
        Pair { resync_after_disconnect: true, ..gone(state) }.expect(Plan::Resync(Resync::Disconnected));
    }
    let demoted = gone(MirrorPeerState::Replaying).with_remote([demoted(5)]);
    demoted.expect(Plan::Stop(Stop::Disconnected));
    Pair { resync_after_disconnect: true, ..demoted }.expect(Plan::Resync(Resync::Disconnected));
    let split = gone(MirrorPeerState::Replaying).with_local(tag(ORPHAN, LOCAL, Some((9, 1))));
    Pair { resync_after_disconnect: true, ..split }.expect_split_brain("demotion");
}

/// What follows the local demotion remotely, and whether the local image may follow it.
#[test]
fn a_promotion_continues_only_the_demotion_that_it_came_from() {
    let here = || Pair::replaying().with_local(tag(ORPHAN, LOCAL, Some((5, 2))));
    let replayed = (9, tag(ORPHAN, A, Some((5, 2))));
    let promoted = (10, tag(LOCAL, ORPHAN, Some((9, 1))));
    let later = (11, tag(LOCAL, LOCAL, Some((10, 8))));
    here().with_remote([replayed.clone(), promoted.clone()]).expect(FINE);
    here()
        .with_remote([(8, tag(A, A, Some((4, 2)))), replayed.clone(), promoted.clone(), later.clone()])
        .expect(FINE);
    // Promoted by force, before the demotion arrived or behind it.
    here().with_remote([(9, tag(LOCAL, LOCAL, Some((8, 0))))]).expect_split_brain("demotion");
    here()
        .with_remote([replayed.clone(), (10, tag(LOCAL, LOCAL, Some((9, 0))))])
        .expect_split_brain("demotion");
    // Out of another demotion.
    here().with_remote([(9, tag(ORPHAN, A, Some((4, 2)))), promoted.clone()]).expect_split_brain("demotion");
    here()
        .with_remote([replayed.clone(), (10, tag(LOCAL, ORPHAN, Some((7, 1))))])
        .expect_split_brain("demotion");
    // Something came between.
    here()
        .with_remote([
            replayed.clone(),
            (10, tag(A, A, Some((6, 1)))),
            (11, tag(LOCAL, ORPHAN, Some((9, 1)))),
        ])
        .expect_split_brain("demotion");
    // Of a third site.
    here()
        .with_remote([(9, tag(ORPHAN, "uuid-of-c", Some((5, 2)))), promoted])
        .expect_split_brain("demotion");
}

#[test]
fn a_primary_that_was_demoted_and_promoted_again_is_followed() {
    let here = Pair::replaying().with_local(tag(ORPHAN, B, Some((4, 5))));
    let remote = [demoted(5), (6, tag(LOCAL, ORPHAN, Some((5, 1))))];
    here.with_remote(remote).expect(FINE);
}

#[test]
fn a_demotion_before_the_first_write_is_known_by_its_lack_of_a_position() {
    let here = || Pair::replaying().with_local(tag(ORPHAN, LOCAL, None));
    let promoted = (3, tag(LOCAL, ORPHAN, Some((2, 1))));
    here().with_remote([(2, tag(ORPHAN, A, None)), promoted.clone()]).expect(FINE);
    here().with_remote([(2, tag(ORPHAN, A, Some((1, 1)))), promoted]).expect_split_brain("demotion");
    here().with_remote([(3, tag(LOCAL, LOCAL, Some((2, 0))))]).expect_split_brain("demotion");
}

#[test]
fn a_copy_of_something_else_is_not_touched() {
    Pair::replaying()
        .with_local(tag("uuid-of-c", "uuid-of-c", Some((1, 1))))
        .expect_split_brain("another pool");
    // All that the copy could go on from has been replayed, and yet the remote journal has only older tags.
    let lost = Pair::replaying().with_local(tag(B, B, Some((9, 7))));
    lost.expect_split_brain("lost");
}
