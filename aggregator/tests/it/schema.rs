//! The schema against the declarations that COPY and queries are made of.

use events::fact::{FACT_TABLES, KEY};
use migrations::testing::TestDatabase;

#[tokio::test]
async fn fact_tables_have_the_declared_columns_and_key() {
    let database = TestDatabase::create().await;
    let mut connection = database.connect().await;
    for table in &FACT_TABLES {
        let columns: Vec<(String, String, bool)> = sqlx::query_as(
            "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
             WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        )
        .bind(table.name)
        .fetch_all(&mut connection)
        .await
        .expect("answers");
        let declared: Vec<(String, String, bool)> = table
            .columns()
            .map(|column| (column.name.to_owned(), column.column_type.sql().to_owned(), column.is_required))
            .collect();
        assert_eq!(columns, declared, "{}", table.name);

        let indexes: Vec<String> = sqlx::query_scalar(
            "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = to_regclass($1) ORDER BY indisprimary DESC",
        )
        .bind(table.name)
        .fetch_all(&mut connection)
        .await
        .expect("answers");
        let name = table.name;
        let key = format!("CREATE UNIQUE INDEX {name}_pkey ON ONLY public.{name} USING btree ({})", KEY.join(", "));
        let offset =
            format!("CREATE INDEX {name}_by_offset ON ONLY public.{name} USING brin (log_offset) WITH (autosummarize='on')");
        assert_eq!(indexes, [key, offset]);
    }
}
