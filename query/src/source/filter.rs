//! Filters that Postgres can apply itself, as its SQL.
//!
//! Only forms whose meaning is the same on both sides are written; for others DataFusion filters alone. Literals are the
//! only text of a client that ever gets into SQL, and each is written by [`literal`].

use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use crate::source::copy::Kind;
use crate::source::snapshot::time_text;
use crate::source::tables::Column;

/// Writes a filter over the alias `t`, or returns `None` if Postgres shall not see it.
pub fn to_sql(expr: &Expr, columns: &[Column]) -> Option<String> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            Some(format!("({} {op} {})", to_sql(left, columns)?, to_sql(right, columns)?))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (&**left, &**right) {
            (Expr::Column(column), Expr::Literal(value, _)) => compare(find(&column.name, columns)?, *op, value),
            (Expr::Literal(value, _), Expr::Column(column)) => compare(find(&column.name, columns)?, op.swap()?, value),
            _ => None,
        },
        Expr::InList(InList { expr, list, negated }) => {
            let Expr::Column(column) = &**expr else {
                return None;
            };
            let column = find(&column.name, columns)?;
            let value = |item: &Expr| match item {
                Expr::Literal(value, _) => literal(column.kind, value),
                _ => None,
            };
            let values: Option<Vec<String>> = list.iter().map(value).collect();
            let values = values.filter(|values| !values.is_empty())?;
            Some(format!("{} {}IN ({})", name(column), if *negated { "NOT " } else { "" }, values.join(", ")))
        }
        Expr::IsNull(inner) => Some(format!("{} IS NULL", name(column_of(inner, columns)?))),
        Expr::IsNotNull(inner) => Some(format!("{} IS NOT NULL", name(column_of(inner, columns)?))),
        Expr::Column(_) => boolean(expr, columns).map(name),
        Expr::Not(inner) => boolean(inner, columns).map(|column| format!("NOT {}", name(column))),
        _ => None,
    }
}

fn find<'a>(name: &str, columns: &'a [Column]) -> Option<&'a Column> {
    columns.iter().find(|column| column.name == name)
}

fn column_of<'a>(expr: &Expr, columns: &'a [Column]) -> Option<&'a Column> {
    match expr {
        Expr::Column(column) => find(&column.name, columns),
        _ => None,
    }
}

fn boolean<'a>(expr: &Expr, columns: &'a [Column]) -> Option<&'a Column> {
    column_of(expr, columns).filter(|column| column.kind == Kind::Bool)
}

fn name(column: &Column) -> String {
    format!("t.\"{}\"", column.name)
}

fn compare(column: &Column, op: Operator, value: &ScalarValue) -> Option<String> {
    let op = match op {
        Operator::Eq => "=",
        Operator::NotEq => "<>",
        // Texts are ordered by bytes there and by a collation here.
        _ if matches!(column.kind, Kind::Text | Kind::Uuid) => return None,
        Operator::Lt => "<",
        Operator::LtEq => "<=",
        Operator::Gt => ">",
        Operator::GtEq => ">=",
        _ => return None,
    };
    Some(format!("{} {op} {}", name(column), literal(column.kind, value)?))
}

/// Writes a value as a literal of the column's type, or returns `None` if it is of another type or cannot be one.
fn literal(kind: Kind, value: &ScalarValue) -> Option<String> {
    match (kind, value) {
        (Kind::Text, value) => {
            let text = value.try_as_str()??;
            // Postgres holds no U+0000. Connections use standard_conforming_strings, so that only the quote is special.
            (!text.contains('\0')).then(|| format!("'{}'", text.replace('\'', "''")))
        }
        (Kind::Uuid, value) => {
            let text = value.try_as_str()??;
            let id = uuid::Uuid::try_parse(text).ok()?;
            // Any other spelling is another text, which no row has.
            (id.to_string() == text).then(|| format!("'{id}'::uuid"))
        }
        (Kind::Bool, ScalarValue::Boolean(Some(value))) => Some(value.to_string()),
        (Kind::Int, ScalarValue::Int32(Some(value))) => Some(format!("({value})")),
        (Kind::Long, ScalarValue::Int64(Some(value))) => Some(format!("({value})")),
        (Kind::Time, ScalarValue::TimestampMicrosecond(Some(us), _)) => {
            // Beyond four digits of a year both sides spell differently.
            let range = -62_135_596_800_000_000..253_402_300_800_000_000;
            range.contains(us).then(|| format!("'{}'::timestamptz", time_text(*us)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::{col, in_list, lit};

    #[test]
    fn simple_filters_are_written_and_others_left() {
        let columns = [
            Column { name: "event", kind: Kind::Text },
            Column { name: "user_id", kind: Kind::Uuid },
            Column { name: "is_bot", kind: Kind::Bool },
            Column { name: "n", kind: Kind::Int },
            Column { name: "event_time", kind: Kind::Time },
            Column { name: "value", kind: Kind::Decimal(20, 6) },
        ];
        let check = |expr: Expr, expected: Option<&str>| assert_eq!(to_sql(&expr, &columns).as_deref(), expected, "{expr}");
        let id = "0f0e0d0c-0000-4000-8000-000000000001";
        let time = |us| lit(ScalarValue::TimestampMicrosecond(Some(us), Some("UTC".into())));
        check(col("event").eq(lit("a")), Some("t.\"event\" = 'a'"));
        check(lit("a").not_eq(col("event")), Some("t.\"event\" <> 'a'"));
        check(col("event").eq(lit("it's\\'; DROP TABLE keys; --")), Some("t.\"event\" = 'it''s\\''; DROP TABLE keys; --'"));
        check(col("event").eq(lit("a\0b")), None);
        check(col("event").lt(lit("a")), None);
        check(col("event").like(lit("a%")), None);
        check(col("other").eq(lit("a")), None);
        check(in_list(col("event"), vec![lit("a"), lit("b'")], false), Some("t.\"event\" IN ('a', 'b''')"));
        check(in_list(col("event"), vec![lit("a")], true), Some("t.\"event\" NOT IN ('a')"));
        check(in_list(col("event"), vec![lit("a"), lit("b\0")], false), None);
        check(col("user_id").eq(lit(id)), Some(&format!("t.\"user_id\" = '{id}'::uuid")));
        check(col("user_id").eq(lit(id.to_uppercase())), None);
        check(col("user_id").eq(lit("x' OR '1'='1")), None);
        check(col("is_bot"), Some("t.\"is_bot\""));
        check(!col("is_bot"), Some("NOT t.\"is_bot\""));
        check(col("event"), None);
        check(col("n").gt_eq(lit(-3i32)), Some("t.\"n\" >= (-3)"));
        check(lit(3i32).lt(col("n")), Some("t.\"n\" > (3)"));
        check(col("event_time").lt(time(1_500_000)), Some("t.\"event_time\" < '1970-01-01T00:00:01.500Z'::timestamptz"));
        check(col("event_time").lt(time(i64::MAX)), None);
        check(col("event").is_null(), Some("t.\"event\" IS NULL"));
        check(col("value").gt(lit(1.5)), None);
        let both = col("is_bot").and(col("event").eq(lit("a")));
        check(both.clone(), Some("(t.\"is_bot\" AND t.\"event\" = 'a')"));
        check(both.or(col("event").like(lit("a%"))), None);
    }
}
