//! Faults to try on a swarm of one's own: kill a process, freeze one, let one join late, poison what one contributes.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use iota_protocol::time::Millis;

use crate::run::Poison;

/// A moment of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So long after the first epoch opened.
    After(Duration),
    /// As soon as any stage opens this epoch.
    Epoch(u32),
}

impl When {
    /// Whether the moment has come, `training` after the first epoch opened, when `epoch` is the latest open one.
    #[must_use]
    pub fn is_due(self, training: Option<Duration>, epoch: Option<u32>) -> bool {
        match self {
            Self::After(delay) => training.is_some_and(|training| training >= delay),
            Self::Epoch(due) => epoch.is_some_and(|epoch| epoch >= due),
        }
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(epoch) = text.strip_prefix('e').and_then(|digits| digits.parse().ok()) {
            return Ok(Self::Epoch(epoch));
        }
        let expected = || format!("expected a duration such as `15s` or an epoch such as `e5`, got `{text}`");
        text.parse::<Millis>().map(|millis| Self::After(millis.duration())).map_err(|_| expected())
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(delay) => write!(f, "{:.1}s", delay.as_secs_f64()),
            Self::Epoch(epoch) => write!(f, "epoch {epoch}"),
        }
    }
}

/// Which processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victims {
    /// The one of this index.
    One(usize),
    /// All there are.
    All,
}

impl Victims {
    /// Whether the process of this index is one of them.
    #[must_use]
    pub const fn include(self, index: usize) -> bool {
        match self {
            Self::One(peer) => peer == index,
            Self::All => true,
        }
    }
}

impl fmt::Display for Victims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(peer) => write!(f, "process {peer}"),
            Self::All => f.write_str("all processes"),
        }
    }
}

/// SIGKILL for a process or all, and a new start later if asked for; written `2@e5`, `2@30s`, `2@e5+3s` or `all@e5+3s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Whom.
    pub victims: Victims,
    /// When.
    pub when: When,
    /// How long after that they are started again in the same folder.
    pub back: Option<Duration>,
}

impl FromStr for Kill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "`<peer or all>@<duration or epoch>[+<duration>]` such as `2@e5` or `all@e5+3s`";
        let (victims, rest) = match text.strip_prefix("all@") {
            Some(rest) => (Victims::All, rest),
            None => peer_and_rest(text, expected).map(|(peer, rest)| (Victims::One(peer), rest))?,
        };
        let (when, back) = rest.split_once('+').map_or((rest, None), |(when, back)| (when, Some(back)));
        let back = back.map(str::parse::<Millis>).transpose();
        let back = back.map_err(|error| format!("expected {expected}, got `{text}`: {error}"))?;
        Ok(Self { victims, when: when.parse()?, back: back.map(Millis::duration) })
    }
}

/// SIGSTOP for one process and SIGCONT later; written `2@10s+20s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freeze {
    /// Index of the process.
    pub peer: usize,
    /// When it stops.
    pub when: When,
    /// For how long.
    pub pause: Duration,
}

impl FromStr for Freeze {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "`<peer>@<duration or epoch>+<duration>` such as `2@10s+20s`";
        let (peer, rest) = peer_and_rest(text, expected)?;
        let (when, pause) =
            rest.split_once('+').ok_or_else(|| format!("expected {expected}, got `{text}`"))?;
        let pause = pause.parse::<Millis>().map_err(|error| error.to_string())?;
        Ok(Self { peer, when: when.parse()?, pause: pause.duration() })
    }
}

/// Splits `2@…` at its sign.
fn peer_and_rest<'a>(text: &'a str, expected: &str) -> Result<(usize, &'a str), String> {
    let parts = text.split_once('@').and_then(|(peer, rest)| Some((peer.parse().ok()?, rest)));
    parts.ok_or_else(|| format!("expected {expected}, got `{text}`"))
}

/// A process that spoils what it computed; written `5` or `5:contribution` for its contributions, `5:merge` for its merges, `5:push` for what it
/// sends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poisoned {
    /// Index of the process.
    pub peer: usize,
    /// What it spoils.
    pub poison: Poison,
}

impl FromStr for Poisoned {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (peer, what) = text.split_once(':').unwrap_or((text, "contribution"));
        let (peer, poison) = (peer.parse().ok(), <Poison as ValueEnum>::from_str(what, false).ok());
        let read = peer.zip(poison).map(|(peer, poison)| Self { peer, poison });
        read.ok_or_else(|| {
            format!(
                "expected `<peer>` or `<peer>:<contribution, merge or push>` such as `5:merge`, got `{text}`"
            )
        })
    }
}

/// The faults of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Processes to kill.
    pub kills: Vec<Kill>,
    /// Processes to freeze.
    pub freezes: Vec<Freeze>,
    /// When one more miner each joins.
    pub joins: Vec<When>,
    /// Processes that spoil what they computed.
    pub poisons: Vec<Poisoned>,
}

impl Faults {
    /// The largest process index that a fault names.
    #[must_use]
    pub fn peer_max(&self) -> Option<usize> {
        let killed = self.kills.iter().filter_map(|kill| match kill.victims {
            Victims::One(peer) => Some(peer),
            Victims::All => None,
        });
        let frozen = self.freezes.iter().map(|freeze| freeze.peer);
        killed.chain(frozen).chain(self.poisons.iter().map(|poisoned| poisoned.peer)).max()
    }

    /// One line per fault, for the report.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let kills = self.kills.iter().map(|kill| {
            let again = |back: Duration| format!(", start again {:.1}s later", back.as_secs_f64());
            format!("kill {} at {}{}", kill.victims, kill.when, kill.back.map(again).unwrap_or_default())
        });
        let freezes = self.freezes.iter().map(|freeze| {
            format!(
                "freeze process {} at {} for {:.1}s",
                freeze.peer,
                freeze.when,
                freeze.pause.as_secs_f64()
            )
        });
        let joins = self.joins.iter().map(|when| format!("one more miner at {when}"));
        let poisons = self.poisons.iter().map(|Poisoned { peer, poison }| match poison {
            Poison::Contribution => format!("process {peer} contributes the negative of what it computed"),
            Poison::Merge => format!("process {peer} merges the negative of what it computed"),
            Poison::Push => format!("process {peer} sends on the negative of what it computed"),
        });
        kills.chain(freezes).chain(joins).chain(poisons).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_as_documented() {
        let kill = |victims, when, back| Ok(Kill { victims, when, back });
        assert_eq!("2@e5".parse(), kill(Victims::One(2), When::Epoch(5), None));
        assert_eq!("0@30s".parse(), kill(Victims::One(0), When::After(Duration::from_secs(30)), None));
        let second = Some(Duration::from_secs(1));
        assert_eq!("all@e2+1s".parse(), kill(Victims::All, When::Epoch(2), second));
        let freeze =
            Freeze { peer: 1, when: When::After(Duration::from_secs(10)), pause: Duration::from_secs(20) };
        assert_eq!("1@10s+20s".parse(), Ok(freeze));
        for wrong in ["2", "x@5s", "2@5", "2@later", "2@e1+soon", "all@"] {
            assert!(
                wrong.parse::<Kill>().unwrap_err().contains(wrong.rsplit('@').next().unwrap()),
                "{wrong}"
            );
        }
        let poisoned = |peer, poison| Ok(Poisoned { peer, poison });
        assert_eq!("5".parse(), poisoned(5, Poison::Contribution));
        assert_eq!("5:merge".parse(), poisoned(5, Poison::Merge));
        assert_eq!("5:push".parse(), poisoned(5, Poison::Push));
        assert!("5:lunch".parse::<Poisoned>().unwrap_err().contains("5:lunch"));
        assert!("1@10s".parse::<Freeze>().unwrap_err().contains("1@10s"));
    }

    #[test]
    fn a_moment_is_due_once_training_or_the_epoch_reaches_it() {
        let after = When::After(Duration::from_secs(3));
        assert!(!after.is_due(None, Some(9)));
        assert!(after.is_due(Some(Duration::from_secs(3)), None));
        assert!(!When::Epoch(2).is_due(Some(Duration::MAX), Some(1)));
        assert!(When::Epoch(2).is_due(None, Some(2)));
    }
}
