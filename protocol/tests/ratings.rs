//! Plackett-Luce ratings beside those of the package `openskill`: `fixtures/golden/ratings.txt`, which `ratings.py` in the same
//! folder printed and says how.

use iota_protocol::gauntlet::rating::{Rating, rate};

const GOLDEN: &str = include_str!("../../fixtures/golden/ratings.txt");

/// A match of the file: its players with their ratings and ranks, and the ratings after it.
#[derive(Default)]
struct Match {
    title: String,
    players: Vec<(Rating, usize)>,
    after: Vec<Rating>,
}

fn matches() -> Vec<Match> {
    let mut matches: Vec<Match> = Vec::new();
    for line in GOLDEN.lines().filter_map(|line| line.split('#').next()).filter(|line| !line.is_empty()) {
        if let Some(title) = line.strip_prefix("match ") {
            matches.push(Match { title: title.to_owned(), ..Match::default() });
            continue;
        }
        let (rank, numbers) = line.split_once(' ').expect("a rank");
        let numbers: Vec<f64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [mu, sigma, mu_after, sigma_after] = numbers[..] else { panic!("four numbers: {line}") };
        let of = matches.last_mut().expect("a match");
        of.players.push((Rating { mu, sigma }, rank.parse().expect("a rank")));
        of.after.push(Rating { mu: mu_after, sigma: sigma_after });
    }
    matches
}

#[test]
fn ratings_are_those_of_openskill_and_with_ties_those_of_the_paper() {
    let matches = matches();
    assert_eq!(matches.len(), 14);
    for Match { title, players, after } in matches {
        let rated = rate(&players);
        assert!(rated.len() == after.len() && after.len() > 1, "{title}");
        for (ours, theirs) in rated.iter().zip(&after) {
            let apart = (ours.mu - theirs.mu).abs().max((ours.sigma - theirs.sigma).abs());
            assert!(apart < 1e-9, "{title}: {ours:?} is not {theirs:?}");
        }
    }
}
