//! The limit of an aggregator over Kafka: a bare loop that reads records, parses them, and copies their rows straight into the
//! fact tables, with the offsets in the same transaction.
//!
//! It does what no such loop can leave out: one consumer over all partitions, JSON with borrowed fields, binary COPY, one
//! transaction for each batch, the next batch parsed meanwhile. It looks up no name, deduplicates nothing, derives nothing, shares its work with nobody,
//! and any error ends it.

use std::borrow::Cow;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, bail};
use events::Money;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::database::Database;

/// Records of one transaction, at most; as many as the aggregator takes.
const BATCH_RECORDS: usize = 20_000;
/// Microseconds from 1970 to 2000, where Postgres counts from.
const EPOCH_2000_US: i64 = 946_684_800_000_000;
const TABLES: [(&str, &str); 3] = [
    ("impressions", ""),
    ("conversions", ", conversion_type, conversion_value, currency"),
    ("engagement_events", ", event_type"),
];
const COLUMNS: &str = "project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id, log_partition, \
                       log_offset, session_identifier, page_url, referrer, language_code, country_code, device_type, metadata";

#[derive(Deserialize)]
struct Read<'a> {
    #[serde(borrow)]
    event: Event<'a>,
}

#[derive(Deserialize)]
struct Event<'a> {
    project_id: &'a str,
    event_id: &'a str,
    user_id: &'a str,
    claimed_at: i64,
    event_time: i64,
    received_at: i64,
    session_id: Option<Cow<'a, str>>,
    name: Option<Cow<'a, str>>,
    value: Option<&'a str>,
    currency: Option<&'a str>,
    #[serde(borrow)]
    context: Context<'a>,
    #[serde(borrow)]
    details: &'a RawValue,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Context<'a> {
    page_url: Option<Cow<'a, str>>,
    referrer: Option<Cow<'a, str>>,
    language: Option<Cow<'a, str>>,
    country: Option<Cow<'a, str>>,
    device_type: Option<Cow<'a, str>>,
}

/// Rows of the three tables, and the next offset of each partition.
struct Batch {
    rows: [Vec<u8>; 3],
    next: Vec<(i32, i64)>,
}

/// Stores this many records of a topic, from its start.
/// # Errors
/// Whatever fails first.
pub(crate) async fn store(brokers: &str, topic: &str, log_id: Uuid, records: u64, database: &Database) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    let (sender, batches) = sync_channel(1);
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let reading = tokio::task::spawn_blocking(move || read(&brokers, &topic, log_id, records, &sender));
    let (forward, mut received) = tokio::sync::mpsc::channel(1);
    let forwarding = tokio::task::spawn_blocking(move || batches.into_iter().try_for_each(|batch| forward.blocking_send(batch)));
    while let Some(batch) = received.recv().await {
        commit(&mut connection, log_id, batch).await?;
    }
    reading.await??;
    forwarding.await?.context("nobody took a batch")?;
    connection.close().await?;
    Ok(())
}

async fn commit(connection: &mut PgConnection, log_id: Uuid, batch: Batch) -> anyhow::Result<()> {
    let mut transaction = connection.begin().await?;
    for ((table, more), mut rows) in TABLES.iter().zip(batch.rows) {
        if rows.len() > HEADER.len() + 8 {
            rows.extend_from_slice(&(-1i16).to_be_bytes());
            let mut copy = transaction.copy_in_raw(&format!("COPY {table} ({COLUMNS}{more}) FROM STDIN (FORMAT BINARY)")).await?;
            copy.send(rows).await?;
            copy.finish().await?;
        }
    }
    let (partitions, offsets): (Vec<i32>, Vec<i64>) = batch.next.into_iter().unzip();
    let sql = "INSERT INTO checkpoints (log_id, log_partition, next_offset) SELECT $1, * FROM unnest($2::int[], $3::bigint[])
               ON CONFLICT (log_id, log_partition) DO UPDATE SET next_offset = excluded.next_offset";
    sqlx::query(sql).bind(log_id).bind(partitions).bind(offsets).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}

/// Makes the row that checkpoints belong to.
/// # Errors
/// Those of Postgres.
pub(crate) async fn know(log_id: Uuid, partitions: u32, database: &Database) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    let sql = format!("INSERT INTO logs (log_id, log_partitions) VALUES ('{log_id}', {partitions})");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0";

fn begin() -> Vec<u8> {
    let mut rows = Vec::with_capacity(8 << 20);
    rows.extend_from_slice(HEADER);
    rows.extend_from_slice(&[0; 8]); // no flags, no extension
    rows
}

fn read(brokers: &str, topic: &str, log_id: Uuid, records: u64, batches: &SyncSender<Batch>) -> anyhow::Result<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "bare-loop")
        .set("enable.auto.commit", "false")
        .set("fetch.queue.backoff.ms", "5")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10))?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut all = TopicPartitionList::new();
    for partition in 0..partitions {
        all.add_partition_offset(topic, partition as i32, Offset::Beginning)?;
    }
    consumer.assign(&all)?;
    let mut done = 0;
    while done < records {
        let mut batch = Batch { rows: [begin(), begin(), begin()], next: Vec::new() };
        let mut next = vec![None; partitions];
        let mut taken = 0;
        while taken < BATCH_RECORDS && done < records {
            let Some(message) = consumer.poll(Duration::from_millis(if taken == 0 { 10_000 } else { 50 })) else { break };
            let message = message?;
            let payload = message.payload().context("a record without a value")?;
            append(&mut batch.rows, payload, log_id, message.partition(), message.offset())?;
            next[message.partition() as usize] = Some(message.offset() + 1);
            taken += 1;
            done += 1;
        }
        if taken == 0 {
            bail!("{done} of {records} records came, and no more for 10 s");
        }
        batch.next = next.into_iter().enumerate().filter_map(|(partition, offset)| Some((partition as i32, offset?))).collect();
        if batches.send(batch).is_err() {
            bail!("a batch was not stored");
        }
    }
    Ok(())
}

/// Adds a record's row to those of its table.
fn append(rows: &mut [Vec<u8>; 3], payload: &[u8], log_id: Uuid, partition: i32, offset: i64) -> anyhow::Result<()> {
    let Read { event } = serde_json::from_slice(payload).with_context(|| String::from_utf8_lossy(payload).into_owned())?;
    let details = event.details.get();
    let (table, more) = match details {
        details if details.starts_with(r#"{"impression""#) => (0, 0),
        details if details.starts_with(r#"{"conversion""#) => (1, 3),
        r#""engagement""# => (2, 1),
        other => bail!("a record of another kind: {other}"),
    };
    let out = &mut rows[table];
    out.extend_from_slice(&(18 + more as i16).to_be_bytes());
    let mut value = |bytes: Option<&[u8]>| match bytes {
        Some(bytes) => {
            out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
            out.extend_from_slice(bytes);
        }
        None => out.extend_from_slice(&(-1i32).to_be_bytes()),
    };
    for id in [event.project_id, event.event_id, event.user_id] {
        value(Some(Uuid::parse_str(id)?.as_bytes()));
    }
    for time in [event.claimed_at, event.event_time, event.received_at] {
        value(Some(&(time - EPOCH_2000_US).to_be_bytes()));
    }
    value(Some(&[0]));
    value(Some(&[0]));
    value(Some(log_id.as_bytes()));
    value(Some(&partition.to_be_bytes()));
    value(Some(&offset.to_be_bytes()));
    let Context { page_url, referrer, language, country, device_type } = &event.context;
    for text in [&event.session_id, page_url, referrer, language, country, device_type] {
        value(text.as_deref().map(str::as_bytes));
    }
    let metadata = event.metadata.map(|metadata| [b"\x01", metadata.get().as_bytes()].concat());
    value(metadata.as_deref());
    if more > 0 {
        value(Some(event.name.as_deref().unwrap_or_default().as_bytes()));
    }
    if more > 1 {
        let money = event.value.map(numeric).transpose()?;
        value(money.as_deref());
        value(event.currency.map(str::as_bytes));
    }
    Ok(())
}

/// Writes a decimal as `numeric_recv` reads it: groups of four digits, the weight of the first one, the sign, six decimals.
fn numeric(text: &str) -> anyhow::Result<Vec<u8>> {
    let money: Money = text.parse().with_context(|| text.to_owned())?;
    // Eight decimals are two groups.
    let mut rest = money.millionths().unsigned_abs() * 100;
    let mut groups = Vec::new();
    while rest > 0 {
        groups.push((rest % 10_000) as i16);
        rest /= 10_000;
    }
    let weight = groups.len() as i16 - 3;
    let sign: i16 = if money.millionths() < 0 { 0x4000 } else { 0 };
    let head = [groups.len() as i16, weight, sign, 6];
    Ok(head.iter().chain(groups.iter().rev()).flat_map(|number| number.to_be_bytes()).collect())
}
