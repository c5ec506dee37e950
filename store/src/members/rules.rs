//! Which changes of the members are made, and why another one is refused. Pure decisions, on what the
//! leader knows at one moment.
//!
//! The rules and their order are etcd's (`--strict-reconfig-check`, then the validity of the change),
//! and one is added to them: those that have a vote in Raft and answer must be a quorum after the
//! change as well. With etcd these are the same, since every voter votes from the start; here a new
//! voter has no vote before it has caught up.

use std::collections::BTreeSet;

use crate::error::RequestError;

/// As many learners as there may be at once: etcd's default.
const MAX_LEARNERS: usize = 1;

/// A member, as far as a decision depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) id: u64,
    pub(crate) peer_urls: Vec<String>,
    /// It was added as a learner and not promoted yet.
    pub(crate) learner: bool,
    /// It has been up and told its name.
    pub(crate) started: bool,
    /// It counts in a quorum.
    pub(crate) votes: bool,
    /// It has answered the leader just now. The leader itself always has.
    pub(crate) answers: bool,
    /// Its log holds all that the leader's held when the question was put.
    pub(crate) caught_up: bool,
}

/// All members, and those that there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    pub(crate) members: Vec<Standing>,
    pub(crate) removed: BTreeSet<u64>,
}

fn quorum(count: usize) -> usize {
    count / 2 + 1
}

impl Roster {
    fn find(&self, id: u64) -> Option<&Standing> {
        self.members.iter().find(|member| member.id == id)
    }

    /// Those that are listed as voters, whether or not they have a vote already.
    fn voters(&self) -> impl Iterator<Item = &Standing> {
        self.members.iter().filter(|member| !member.learner)
    }

    fn is_taken(&self, peer_urls: &[String], except: Option<u64>) -> bool {
        let others = self.members.iter().filter(|member| Some(member.id) != except);
        others.flat_map(|member| &member.peer_urls).any(|url| peer_urls.contains(url))
    }

    pub(crate) fn check_add(
        &self,
        id: u64,
        peer_urls: &[String],
        learner: bool,
    ) -> Result<(), RequestError> {
        let started = self.voters().filter(|member| member.started).count();
        let voters_then = self.voters().count() + 1;
        // A lone member may always get a second one, or there could never be a cluster.
        let is_second = started == 1 && voters_then == 2;
        if !learner && !is_second && started < quorum(voters_then) {
            return Err(RequestError::NotEnoughStarted);
        }
        if self.voters().any(|member| !member.answers) {
            return Err(RequestError::Unhealthy);
        }
        if self.removed.contains(&id) {
            return Err(RequestError::MemberNotFound);
        }
        if self.find(id).is_some() {
            return Err(RequestError::MemberExists);
        }
        if self.is_taken(peer_urls, None) {
            return Err(RequestError::PeerUrlExists);
        }
        let learners = self.members.iter().filter(|member| member.learner).count();
        if learner && learners >= MAX_LEARNERS {
            return Err(RequestError::TooManyLearners);
        }
        Ok(())
    }

    pub(crate) fn check_remove(&self, id: u64) -> Result<(), RequestError> {
        let target = self.find(id);
        if target.is_some_and(|target| target.learner) {
            return Ok(());
        }
        let rest = || self.voters().filter(|member| member.id != id);
        if rest().filter(|member| member.started).count() < quorum(rest().count()) {
            return Err(RequestError::NotEnoughStarted);
        }
        let Some(target) = target else { return Err(RequestError::MemberNotFound) };
        // One that is down holds up nobody's quorum.
        let answering = rest().filter(|member| member.answers).count();
        if target.answers && answering < quorum(rest().count()) {
            return Err(RequestError::Unhealthy);
        }
        let votes = || self.members.iter().filter(|member| member.votes && member.id != id);
        if votes().filter(|member| member.answers).count() < quorum(votes().count()) {
            return Err(RequestError::Unhealthy);
        }
        Ok(())
    }

    pub(crate) fn check_update(&self, id: u64, peer_urls: &[String]) -> Result<(), RequestError> {
        if self.find(id).is_none() {
            return Err(RequestError::MemberNotFound);
        }
        if self.is_taken(peer_urls, Some(id)) {
            return Err(RequestError::PeerUrlExists);
        }
        Ok(())
    }

    pub(crate) fn check_promote(&self, id: u64) -> Result<(), RequestError> {
        let Some(target) = self.find(id) else { return Err(RequestError::MemberNotFound) };
        // One that has not told its name yet could lose its log unnoticed (`join`), and with it a vote.
        if !target.caught_up || !target.answers || !target.started {
            return Err(RequestError::LearnerNotReady);
        }
        let started = self.voters().filter(|member| member.started).count();
        if started + 1 < quorum(self.voters().count() + 1) {
            return Err(RequestError::NotEnoughStarted);
        }
        if !target.learner {
            return Err(RequestError::MemberNotLearner);
        }
        Ok(())
    }

    /// Whether leadership can go to this member: it has a vote, and answers.
    pub(crate) fn check_transferee(&self, id: u64) -> Result<(), RequestError> {
        match self.find(id) {
            Some(target) if target.votes && !target.learner && target.answers => Ok(()),
            _ => Err(RequestError::BadTransferee),
        }
    }

    /// Who leads best after `leader`.
    pub(crate) fn successor(&self, leader: u64) -> Option<u64> {
        let able = self.members.iter().filter(|member| member.id != leader);
        let able = able.filter(|member| self.check_transferee(member.id).is_ok());
        able.max_by_key(|member| member.caught_up).map(|member| member.id)
    }

    /// Whether somebody could lead after `leader` at once.
    pub(crate) fn has_ready_successor(&self, leader: u64) -> bool {
        let to = self.successor(leader).and_then(|id| self.find(id));
        to.is_some_and(|to| to.caught_up)
    }

    /// A voter without a vote that may have it now.
    pub(crate) fn ripe(&self) -> Option<u64> {
        let waiting = self.voters().filter(|member| !member.votes);
        let mut ripe =
            waiting.filter(|member| member.started && member.answers && member.caught_up);
        ripe.next().map(|member| member.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word for each member: its id and what is said of it.
    ///
    /// `1` is a voter in good order, `2-` one that is down, `3?` one that was added and has not
    /// been up, `4+` one that has been up, answers, but has no vote yet, `5L` a learner in good
    /// order, `6l` one that has not caught up, `7x` one that was removed.
    fn roster(words: &str) -> Roster {
        let mut roster = Roster::default();
        for word in words.split_whitespace() {
            let (id, mark) = word.split_at(1);
            let id: u64 = id.parse().unwrap();
            if mark == "x" {
                roster.removed.insert(id);
                continue;
            }
            roster.members.push(Standing {
                id,
                peer_urls: vec![url(id)],
                learner: matches!(mark, "L" | "l"),
                started: mark != "?",
                votes: matches!(mark, "" | "-"),
                answers: !matches!(mark, "-" | "?"),
                caught_up: !matches!(mark, "-" | "?" | "l"),
            });
        }
        roster
    }

    fn url(id: u64) -> String {
        format!("http://m{id}:2380")
    }

    fn said(result: Result<(), RequestError>) -> &'static str {
        match result {
            Ok(()) => "ok",
            Err(RequestError::NotEnoughStarted) => "not enough started",
            Err(RequestError::Unhealthy) => "unhealthy",
            Err(RequestError::MemberNotFound) => "not found",
            Err(RequestError::MemberExists) => "exists",
            Err(RequestError::PeerUrlExists) => "url exists",
            Err(RequestError::TooManyLearners) => "too many learners",
            Err(RequestError::LearnerNotReady) => "not ready",
            Err(RequestError::MemberNotLearner) => "not a learner",
            Err(RequestError::BadTransferee) => "bad transferee",
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn voters_are_added_when_those_there_are_hold() {
        for (words, expected) in [
            ("1", "ok"),
            ("1 2?", "not enough started"),
            ("1 2+", "ok"),
            ("1 2 3", "ok"),
            ("1 2 3-", "unhealthy"),
            ("1 2 3 4?", "unhealthy"),
            ("1 2 3 5L", "ok"),
            ("1 2 3 5l", "ok"),
            ("1 2 3 9x", "not found"),
            ("1 2 3 9", "exists"),
        ] {
            assert_eq!(said(roster(words).check_add(9, &[url(8)], false)), expected, "{words}");
        }
    }

    #[test]
    fn one_learner_at_a_time_is_added() {
        for (words, expected) in [
            ("1", "ok"),
            ("1 2?", "unhealthy"),
            ("1 2 3-", "unhealthy"),
            ("1 5L", "too many learners"),
            ("1 2 3", "ok"),
        ] {
            assert_eq!(said(roster(words).check_add(9, &[url(9)], true)), expected, "{words}");
        }
    }

    #[test]
    fn no_two_members_have_the_same_url() {
        let three = roster("1 2 5L");
        for (urls, expected) in [
            (vec![url(9)], "ok"),
            (vec![url(9), url(5)], "url exists"),
            (vec![url(1)], "url exists"),
        ] {
            assert_eq!(said(three.check_add(9, &urls, false)), expected, "{urls:?}");
        }
        for (id, urls, expected) in [
            (1, vec![url(9)], "ok"),
            (1, vec![url(1), url(9)], "ok"),
            (1, vec![url(2)], "url exists"),
            (5, vec![url(9)], "ok"),
            (9, vec![url(9)], "not found"),
        ] {
            assert_eq!(said(three.check_update(id, &urls)), expected, "{id} {urls:?}");
        }
    }

    #[test]
    fn whatever_is_removed_leaves_a_quorum_that_answers() {
        for (words, id, expected) in [
            ("1", 1, "not enough started"),
            ("1 2", 2, "ok"),
            ("1 2", 1, "ok"),
            ("1 2?", 2, "ok"),
            ("1 2?", 1, "not enough started"),
            ("1 2+", 1, "unhealthy"),
            ("1 2 3", 3, "ok"),
            ("1 2 3-", 3, "ok"),
            ("1 2 3-", 2, "unhealthy"),
            ("1 2 3 4- 5-", 4, "ok"),
            ("1 2 3 4- 5-", 3, "unhealthy"),
            ("1 2 3 4?", 4, "ok"),
            // Two that answer but have no vote hold up nobody's quorum.
            ("1 2 3- 4+ 6+", 2, "unhealthy"),
            ("1 5l", 5, "ok"),
            ("1 5L", 1, "not enough started"),
            ("1 2 3", 9, "not found"),
            ("1 2 3 9x", 9, "not found"),
        ] {
            assert_eq!(said(roster(words).check_remove(id)), expected, "{words}: remove {id}");
        }
    }

    #[test]
    fn learners_are_promoted_once_they_have_caught_up() {
        for (words, id, expected) in [
            ("1 5L", 5, "ok"),
            ("1 5l", 5, "not ready"),
            ("1 2 3- 5L", 5, "ok"),
            ("1 2 3? 4? 5L", 5, "ok"),
            ("1 2? 3? 4? 5L", 5, "not enough started"),
            ("1 2 5L", 2, "not a learner"),
            ("1 2- 5L", 2, "not ready"),
            ("1 2 3+", 3, "not a learner"),
            ("1 2 3", 9, "not found"),
        ] {
            assert_eq!(said(roster(words).check_promote(id)), expected, "{words}: promote {id}");
        }
        let mut nameless = roster("1 5L");
        nameless.members[1].started = false;
        assert_eq!(said(nameless.check_promote(5)), "not ready");
    }

    #[test]
    fn leadership_goes_to_voters_that_answer() {
        for (id, expected) in [
            (1, "ok"),
            (2, "bad transferee"),
            (3, "bad transferee"),
            (4, "bad transferee"),
            (5, "bad transferee"),
            (9, "bad transferee"),
        ] {
            assert_eq!(said(roster("1 2- 3? 4+ 5L").check_transferee(id)), expected, "{id}");
        }
        for (words, expected) in [("1", None), ("1 2-", None), ("1 2 3-", Some(2))] {
            assert_eq!(roster(words).successor(1), expected, "{words}");
        }
        let mut behind = roster("1 2 3");
        behind.members[2].caught_up = false;
        assert_eq!(behind.successor(1), Some(2));
        assert!(behind.has_ready_successor(1));
        behind.members[1].caught_up = false;
        assert!(behind.successor(1).is_some() && !behind.has_ready_successor(1));
    }

    #[test]
    fn a_vote_is_given_to_voters_that_have_caught_up_and_told_their_name() {
        for (words, expected) in [
            ("1 2 3", None),
            ("1 2?", None),
            ("1 2+", Some(2)),
            ("1 5L", None),
            ("1 2? 3+", Some(3)),
        ] {
            assert_eq!(roster(words).ripe(), expected, "{words}");
        }
    }
}
