//! The texts of the enums are those of the schema.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::str::FromStr;

use catalogue::vocabulary::COLUMNS;
use catalogue::{
    Aggregation, Amount, AttributionMethod, CampaignStatus, CampaignType, ComponentType, DeadLetterStatus, DeliveryStatus,
    Denominator, Direction, EventNameStatus, ExperimentStatus, KeyKind, NoticeKind, Period, Role, UnknownText, WebhookFormat,
};
use events::rules::Unit;
use migrations::testing::TestDatabase;
use sqlx::postgres::Postgres;
use sqlx::{Decode, Encode, PgConnection, Type};

/// The checks `column IN (..)` of a schema, by table and column.
async fn checks(conn: &mut PgConnection, tables: &[&str]) -> BTreeMap<(String, String), Vec<String>> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT c.conrelid::regclass::text, a.attname::text, pg_get_constraintdef(c.oid) \
         FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1] \
         WHERE c.contype = 'c' AND cardinality(c.conkey) = 1 AND c.conrelid::regclass::text = ANY ($1)",
    )
    .bind(tables)
    .fetch_all(conn)
    .await
    .expect("constraints");
    // CHECK ((status = ANY (ARRAY['draft'::text, 'running'::text])))
    let texts = |check: &str| check.split('\'').skip(1).step_by(2).map(str::to_owned).collect();
    rows.into_iter()
        .filter(|(_, _, check)| check.contains("= ANY (ARRAY["))
        .map(|(table, column, check)| ((table, column), texts(&check)))
        .collect()
}

#[tokio::test]
async fn each_column_with_texts_has_an_enum_with_the_same_ones() {
    let mut conn = TestDatabase::create().await.connect().await;
    let mut tables: Vec<&str> = COLUMNS.iter().map(|(table, ..)| *table).collect();
    tables.dedup();
    let found = checks(&mut conn, &tables).await;
    let known = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let expected: BTreeMap<_, _> =
        COLUMNS.iter().map(|(table, column, texts)| (((*table).to_owned(), (*column).to_owned()), known(texts))).collect();
    assert_eq!(found, expected);
    assert_eq!(found.len(), COLUMNS.len());
}

/// Each text goes through memory, Postgres and JSON and comes back; another one is refused everywhere.
async fn check<T>(conn: &mut PgConnection, texts: &'static [&'static str])
where
    T: FromStr<Err = UnknownText> + ToString + serde::Serialize + Copy + PartialEq + Debug + Send + Unpin,
    T: Type<Postgres> + for<'r> Decode<'r, Postgres> + for<'q> Encode<'q, Postgres> + 'static,
{
    for text in texts {
        let value: T = text.parse().expect("a text of the table");
        assert_eq!(value.to_string(), *text);
        assert_eq!(serde_json::to_value(value).expect("JSON"), *text);
        let back: T = sqlx::query_scalar("SELECT $1").bind(value).fetch_one(&mut *conn).await.expect("a text");
        assert_eq!(back, value);
    }
    for text in ["weighted", "", "Draft", " draft"] {
        assert_eq!(text.parse::<T>(), Err(UnknownText { text: text.to_owned(), known: texts }));
        let read = sqlx::query_scalar::<_, T>("SELECT $1::text").bind(text).fetch_one(&mut *conn).await;
        let error = read.expect_err("nothing is read as a default").to_string();
        assert!(error.contains(&format!("found {text:?}; accepted: {}", texts.join(", "))), "{error}");
    }
}

#[tokio::test]
async fn texts_go_there_and_back_and_others_are_refused() {
    let mut conn = TestDatabase::create().await.connect().await;
    check::<KeyKind>(&mut conn, KeyKind::TEXTS).await;
    check::<ExperimentStatus>(&mut conn, ExperimentStatus::TEXTS).await;
    check::<AttributionMethod>(&mut conn, AttributionMethod::TEXTS).await;
    check::<Aggregation>(&mut conn, Aggregation::TEXTS).await;
    check::<Amount>(&mut conn, Amount::TEXTS).await;
    check::<Denominator>(&mut conn, Denominator::TEXTS).await;
    check::<Direction>(&mut conn, Direction::TEXTS).await;
    check::<Role>(&mut conn, Role::TEXTS).await;
    check::<CampaignStatus>(&mut conn, CampaignStatus::TEXTS).await;
    check::<CampaignType>(&mut conn, CampaignType::TEXTS).await;
    check::<ComponentType>(&mut conn, ComponentType::TEXTS).await;
    check::<DeadLetterStatus>(&mut conn, DeadLetterStatus::TEXTS).await;
    check::<EventNameStatus>(&mut conn, EventNameStatus::TEXTS).await;
    check::<Period>(&mut conn, Period::TEXTS).await;
    check::<NoticeKind>(&mut conn, NoticeKind::TEXTS).await;
    check::<WebhookFormat>(&mut conn, WebhookFormat::TEXTS).await;
    check::<DeliveryStatus>(&mut conn, DeliveryStatus::TEXTS).await;
    for text in Unit::TEXTS {
        assert_eq!(Unit::of_text(text).map(Unit::as_str), Some(*text));
    }
    assert_eq!(Unit::of_text("account"), None);
}
