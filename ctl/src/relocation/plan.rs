//! What is to be done next with a pair of images, from what is known of them. Pure.
//!
//! | here | there | next |
//! |---|---|---|
//! | primary | not primary | nothing: done |
//! | primary | primary | mend (failback), if this site's own writes may be given up |
//! | gave its role up, and there went on without having received that | primary | the same |
//! | a copy | primary | catch up, demote there, await, promote |
//! | a copy | gave its role up | await what there had last, promote |
//! | gave its role up | not primary, received all of it | promote |
//!
//! Anything else is refused with a reason.

use control::Role;
use serde::Serialize;

/// One image of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Side {
    /// Who may write to it.
    pub role: Role,
    /// It was primary and gave that up by itself, and nothing came from the other side since.
    pub gave_up: bool,
    /// It holds all that the other side had when that gave up its role (if it did).
    pub holds_all: bool,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goal {
    /// Give up writes that this site alone has, where both sites went on by themselves.
    pub discard_local: bool,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Next {
    /// Nothing.
    Nothing,
    /// Demote here if need be, and have the image made equal to that of the other site.
    Mend,
    /// Have the newest changes copied, then demote there.
    CatchUp,
    /// Wait for the last changes of the demoted image there.
    Await,
    /// Promote here.
    Promote,
    /// It cannot be done.
    Refuse(Refusal),
}

/// Why an image cannot be relocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// There is no such image here.
    NotHere,
    /// There is no such image there.
    NotThere,
    /// Both are primary.
    BothPrimary,
    /// Both went on by themselves; the one here was demoted since.
    Diverged,
    /// Neither is primary, and neither holds all that the other had.
    NoPrimary,
}

impl Refusal {
    /// The reason, and what to do.
    pub fn sentence(self) -> &'static str {
        match self {
            Refusal::NotHere => {
                "it has not been copied to this site yet; wait until the daemon here has done so"
            }
            Refusal::NotThere => "it is not mirrored at the other site (any more)",
            Refusal::BothPrimary => {
                "both sites are primary (split-brain); decide which one is right, and run `failback --discard-local` at \
                 the other"
            }
            Refusal::Diverged => {
                "this site had writes that the other one never received, and the other one has gone on without them; \
                 `failback --discard-local` gives them up"
            }
            Refusal::NoPrimary => {
                "neither site is primary, and neither is known to hold all that the other had; promote one by force"
            }
        }
    }
}

/// What is to be done next with a pair.
pub fn next(goal: Goal, here: Option<Side>, there: Option<Side>) -> Next {
    let (here, there) = match (here, there) {
        (Some(here), Some(there)) => (here, there),
        (None, _) => return Next::Refuse(Refusal::NotHere),
        (Some(here), None) if here.role == Role::Primary => return Next::Nothing,
        (Some(_), None) => return Next::Refuse(Refusal::NotThere),
    };
    let mend_or = |refusal| if goal.discard_local { Next::Mend } else { Next::Refuse(refusal) };
    match (here.role, there.role) {
        (Role::Primary, Role::Primary) => mend_or(Refusal::BothPrimary),
        (Role::Primary, _) => Next::Nothing,
        (_, Role::Primary) if here.gave_up && !there.holds_all => mend_or(Refusal::Diverged),
        (_, Role::Primary) => Next::CatchUp,
        // Whoever gave up last has the newest; when both did, the one whose giving up was received was earlier.
        (_, _) if there.gave_up && here.gave_up => match (here.holds_all, there.holds_all) {
            (true, _) => Next::Promote,
            (false, true) => Next::Await,
            (false, false) => Next::Refuse(Refusal::NoPrimary),
        },
        (_, _) if there.gave_up && here.holds_all => Next::Promote,
        (_, _) if there.gave_up => Next::Await,
        (_, _) if here.gave_up => Next::Promote,
        _ => Next::Refuse(Refusal::NoPrimary),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Goal = Goal { discard_local: false };
    const DISCARD: Goal = Goal { discard_local: true };

    fn side(role: Role, gave_up: bool, holds_all: bool) -> Option<Side> {
        Some(Side { role, gave_up, holds_all })
    }

    fn copy() -> Option<Side> {
        side(Role::NonPrimary, false, false)
    }

    fn primary() -> Option<Side> {
        side(Role::Primary, false, false)
    }

    #[test]
    fn a_failover_goes_step_by_step() {
        assert_eq!(next(KEEP, copy(), primary()), Next::CatchUp);
        let demoted = side(Role::Orphan, true, false);
        assert_eq!(next(KEEP, copy(), demoted), Next::Await);
        let received = side(Role::Orphan, false, true);
        assert_eq!(next(KEEP, received, demoted), Next::Promote);
        assert_eq!(next(KEEP, primary(), demoted), Next::Nothing);
    }

    #[test]
    fn and_back_at_once_before_anything_was_copied_back() {
        // Here gave up and there received it, was promoted, and gives up in turn.
        let here = side(Role::Orphan, true, false);
        assert_eq!(next(KEEP, here, side(Role::Primary, false, true)), Next::CatchUp);
        assert_eq!(next(KEEP, here, side(Role::Orphan, true, true)), Next::Await);
        assert_eq!(
            next(KEEP, side(Role::Orphan, false, true), side(Role::Orphan, true, true)),
            Next::Promote
        );
        // Demoted by hand, and the other site never promoted: this one has it all.
        assert_eq!(next(KEEP, here, side(Role::Orphan, false, true)), Next::Promote);
        assert_eq!(next(KEEP, here, copy()), Next::Promote);
    }

    #[test]
    fn what_this_site_alone_has_is_given_up_only_when_asked() {
        assert_eq!(next(KEEP, primary(), primary()), Next::Refuse(Refusal::BothPrimary));
        assert_eq!(next(DISCARD, primary(), primary()), Next::Mend);
        let here = side(Role::Orphan, true, false);
        assert_eq!(next(KEEP, here, primary()), Next::Refuse(Refusal::Diverged));
        assert_eq!(next(DISCARD, here, primary()), Next::Mend);
        assert_eq!(next(KEEP, here, side(Role::Orphan, true, false)), Next::Refuse(Refusal::NoPrimary));
    }

    #[test]
    fn half_a_pair_is_refused() {
        assert_eq!(next(KEEP, None, primary()), Next::Refuse(Refusal::NotHere));
        assert_eq!(next(KEEP, copy(), None), Next::Refuse(Refusal::NotThere));
        assert_eq!(next(KEEP, primary(), None), Next::Nothing);
        assert_eq!(next(KEEP, copy(), copy()), Next::Refuse(Refusal::NoPrimary));
        assert_eq!(next(KEEP, side(Role::Unknown, false, false), copy()), Next::Refuse(Refusal::NoPrimary));
    }
}
