//! `weir admin recompute`: proof, or repair, of what is derived.

use aggregator::admin::experiments;
use aggregator::recompute::Differences;
use sqlx::PgConnection;

use super::InProject;
use crate::commands::{print, printable};

/// The arguments of `weir admin recompute`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Name or id of the experiment
    experiment: String,
    #[command(flatten)]
    project: InProject,
}

/// Computes again and reports.
pub(super) async fn run(args: Args, conn: &mut PgConnection) -> anyhow::Result<()> {
    let project = args.project.find(conn).await?;
    let done = experiments::recompute(conn, &project, &args.experiment).await?;
    let differences = done.recomputed.unwrap_or_default();
    print(&format!("experiment {}: {}\n", printable(&done.experiment.name), text(differences)))
}

/// Says what a computation changed.
pub(super) fn text(differences: Differences) -> String {
    let Differences { participation, attribution } = differences;
    if differences == Differences::default() {
        return "computed again, nothing differed".to_owned();
    }
    let rows = |count: u64| if count == 1 { "1 row".to_owned() } else { format!("{count} rows") };
    format!("computed again, {} of participation and {} of attribution differed", rows(participation), rows(attribution))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_said() {
        let check = |participation, attribution, expected: &str| {
            assert_eq!(text(Differences { participation, attribution }), expected);
        };
        check(0, 0, "computed again, nothing differed");
        check(1, 20, "computed again, 1 row of participation and 20 rows of attribution differed");
    }
}
