//! What two successive records of an experiment tell somebody who is not looking.

use catalogue::{NoticeKind, Period};
use serde_json::{Value, json};
use uuid::Uuid;

use super::findings::{Findings, MET, Place, REACHED, Subject};
use crate::experiment::read::cohort::DAY_US;
use crate::source::snapshot::time_text;

/// Something that somebody may want to know at once.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Notice {
    /// What sort of thing.
    pub(super) kind: NoticeKind,
    /// Where it is said.
    place: Place,
    /// About which metric of which variant.
    subject: Option<Subject>,
    /// What was said before.
    before: Option<String>,
    /// What is said now.
    now: String,
    /// The same as a sentence.
    text: String,
}

/// What a record is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of<'a> {
    /// The project's name.
    pub(super) project: &'a str,
    /// The experiment's id and name.
    pub(super) experiment: (Uuid, &'a str),
    /// After what.
    pub(super) period: Period,
    /// The moment that counts as now, in microseconds since 1970.
    pub(super) as_of: i64,
    /// From 2 on it was changed by late events.
    pub(super) revision: i32,
}

/// Returns what is to be told of a record after the one before; of the first one whatever is not as it should be.
pub(super) fn notices(experiment: &str, before: Option<&Findings>, now: &Findings) -> Vec<Notice> {
    let notice = |(place, said): (&Place, &str)| {
        let earlier = before.and_then(|before| before.at(place));
        if earlier == Some(said) {
            return None;
        }
        let decides = |verdict: &str| ["won", "lost"].contains(&verdict);
        let (kind, subject, text) = match place {
            Place::Verdict(subject) if now.is_primary(subject) && (decides(said) || earlier.is_some_and(decides)) => {
                (NoticeKind::VerdictChanged, Some(subject), now.sentence(subject).to_owned())
            }
            Place::Guardrail(subject) if said == "harmed" => {
                (NoticeKind::GuardrailHarmed, Some(subject), now.sentence(subject).to_owned())
            }
            Place::Plan(subject) if said == REACHED => {
                let text =
                    format!("all the information that was planned about {} of {} is there", subject.metric, subject.variant);
                (NoticeKind::PlannedSizeReached, Some(subject), text)
            }
            // Of the first record only what calls for something.
            Place::Decision if earlier.is_some() || said.ends_with("-now") => {
                let from = earlier.map(|earlier| format!(" instead of {earlier}")).unwrap_or_default();
                (NoticeKind::DecisionChanged, None, format!("the numbers say {said}{from}: {}", now.reason()))
            }
            Place::Rule(name) if said == MET => (NoticeKind::RuleMet, None, format!("{name} holds: {}", now.met_by(name))),
            Place::Check(id) if id == "srm" && said == "fail" => {
                let text = "the variants do not hold the users that they should; no result can be trusted until it is known why";
                (NoticeKind::SampleRatioMismatch, None, text.to_owned())
            }
            Place::Check(id) if id == "freshness" && said != "ok" => {
                let text = "it has no more exposures and conversions, while other events of the project come in";
                (NoticeKind::ExposureStopped, None, text.to_owned())
            }
            _ => return None,
        };
        let text = format!("experiment {experiment}: {text}");
        Some(Notice {
            kind,
            place: place.clone(),
            subject: subject.cloned(),
            before: earlier.map(str::to_owned),
            now: said.to_owned(),
            text,
        })
    };
    now.said().filter_map(notice).collect()
}

impl Notice {
    /// Returns whether other findings say it, too.
    pub(super) fn is_said_by(&self, findings: &Findings) -> bool {
        findings.at(&self.place) == Some(self.now.as_str())
    }

    /// Returns its id: a record that is made again, or changed by late events, says nothing twice, and neither do an hour and its day.
    pub(super) fn id(&self, of: &Of<'_>) -> Uuid {
        let subject = self.subject.as_ref().map(|subject| (&subject.metric, &subject.variant));
        let day = of.as_of.div_euclid(DAY_US);
        let what = match &self.place {
            // One day may meet several.
            Place::Rule(name) => json!([self.kind, day, name, self.now]),
            _ => json!([self.kind, day, subject, self.now]),
        };
        Uuid::new_v5(&of.experiment.0, what.to_string().as_bytes())
    }

    /// Returns what is sent.
    pub(super) fn body(&self, of: &Of<'_>) -> Value {
        let subject = self.subject.as_ref();
        json!({
            "text": self.text,
            "project": of.project,
            "experiment": of.experiment.1,
            "experiment_id": of.experiment.0,
            "metric": subject.map(|subject| &subject.metric),
            "variant": subject.map(|subject| &subject.variant),
            "before": self.before,
            "now": self.now,
            "as_of": time_text(of.as_of),
            "period": of.period,
            "revision": of.revision,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings::tests::answer;
    use super::*;

    fn told(before: Option<&Value>, now: &Value) -> Vec<String> {
        let before = before.map(Findings::of);
        let found = notices("checkout", before.as_ref(), &Findings::of(now));
        found.into_iter().map(|notice| format!("{}: {}", notice.kind, notice.text)).collect()
    }

    #[test]
    fn what_changed_is_told_and_what_stays_is_not() {
        let quiet = answer("inconclusive", "inconclusive", "ok", 50);
        assert_eq!(told(None, &quiet), <[String; 0]>::default());
        assert_eq!(told(Some(&quiet), &answer("inconclusive", "safe", "warn", 60)), <[String; 0]>::default());
        let won = answer("won", "safe", "ok", 100);
        assert_eq!(
            told(Some(&quiet), &won),
            [
                "decision_changed: experiment checkout: the numbers say ship-now instead of continue: so it is",
                "verdict_changed: experiment checkout: b has won.",
                "planned_size_reached: experiment checkout: all the information that was planned about rate of b is there"
            ]
        );
        assert_eq!(told(Some(&won), &won), <[String; 0]>::default());
        assert_eq!(told(Some(&won), &answer("neutral", "safe", "ok", 100)).len(), 2, "a verdict that fades is told, too");
        let broken = answer("inconclusive", "harmed", "fail", 50);
        assert_eq!(
            told(None, &broken),
            [
                "sample_ratio_mismatch: experiment checkout: the variants do not hold the users that they should; no result can be \
                 trusted until it is known why",
                "guardrail_harmed: experiment checkout: more errors."
            ]
        );
    }

    #[test]
    fn nothing_is_said_twice() {
        let (quiet, won) = (answer("inconclusive", "safe", "ok", 50), answer("won", "safe", "ok", 60));
        let found = notices("checkout", Some(&Findings::of(&quiet)), &Findings::of(&won));
        let of = |period, as_of, revision| Of { project: "p", experiment: (Uuid::nil(), "checkout"), period, as_of, revision };
        let ids = |of: &Of<'_>| found.iter().map(|notice| notice.id(of)).collect::<Vec<_>>();
        let first = ids(&of(Period::Day, DAY_US - 1, 1));
        assert_eq!(first, ids(&of(Period::Day, DAY_US - 1, 2)), "a record that late events changed");
        assert_eq!(first, ids(&of(Period::Hour, DAY_US / 2, 1)), "an hour of the same day");
        assert!(ids(&of(Period::Day, 2 * DAY_US - 1, 1)).iter().all(|id| !first.contains(id)));
        assert!(first.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(found.iter().all(|notice| notice.is_said_by(&Findings::of(&won)) && !notice.is_said_by(&Findings::of(&quiet))));
        let body = found[1].body(&of(Period::Day, DAY_US - 1, 1));
        assert_eq!(
            (&body["before"], &body["now"], &body["metric"], &body["as_of"]),
            (&json!("inconclusive"), &json!("won"), &json!("rate"), &json!("1970-01-01T23:59:59.999999Z"))
        );
    }
}
