//! Who changed what.

use std::sync::LazyLock;

use sqlx::PgConnection;
use uuid::Uuid;

/// Notes a change, in the transaction that makes it. The actor is the user of the operating system and the database role.
/// `action` is a verb of the command line, such as `experiment.create`; `subject` is what was changed.
/// # Errors
/// As Postgres has them; the change must not be committed then.
pub async fn audit(
    conn: &mut PgConnection,
    project: Option<Uuid>,
    action: &str,
    subject: &str,
    details: &serde_json::Value,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO audit (actor, project_id, action, subject, details) \
         VALUES ($1 || ' as ' || current_user, $2, $3, $4, $5::jsonb)",
    )
    .bind(OPERATOR.as_str())
    .bind(project)
    .bind(action)
    .bind(subject)
    .bind(details.to_string())
    .execute(conn)
    .await?;
    Ok(())
}

/// Not from the environment, where anybody may write another name.
static OPERATOR: LazyLock<String> = LazyLock::new(|| {
    use std::os::unix::fs::MetadataExt;
    // The folder of a process belongs to the user that it runs as.
    let Ok(process) = std::fs::metadata("/proc/self") else { return "unknown user".to_owned() };
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    user_name(&users, process.uid())
});

fn user_name(passwd: &str, uid: u32) -> String {
    let of_uid = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid && !name.is_empty()).then(|| name.to_owned())
    };
    passwd.lines().find_map(of_uid).unwrap_or_else(|| format!("uid {uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_is_found_by_uid() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n# comment\nbroken\nana:x:1000:1000::/home/ana:/bin/sh\n";
        let check = |uid: u32, expected: &str| assert_eq!(user_name(passwd, uid), expected);
        check(0, "root");
        check(1000, "ana");
        check(1001, "uid 1001");
        assert_eq!(user_name("", 7), "uid 7");
    }
}
