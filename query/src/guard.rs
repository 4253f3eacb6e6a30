//! Which SQL is planned at all: one statement that only reads our tables, and small enough to plan.
//!
//! Size is judged on tokens, before anything recursive sees the text: a chain of 2,000 operators is a tree 2,000 deep, which
//! has ended whole processes in a stack overflow.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{Query, Statement as SqlStatement, TableFactor, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::config::Limits;
use crate::error::Refusal;
use crate::tables;

/// A statement that may be planned.
#[derive(Debug)]
pub struct Guarded {
    /// The statement.
    pub statement: Statement,
    /// How many times it reads one of our tables.
    pub relations: usize,
}

/// Reads one statement and checks it.
/// # Errors
/// [`Refusal`] of code `bad_sql` or `sql_too_large`; nothing was planned.
pub fn statement(sql: &str, limits: &Limits) -> Result<Guarded, Refusal> {
    measure(sql, limits)?;
    let parse = |error: datafusion::common::DataFusionError| Refusal::bad_sql(error.strip_backtrace()).at("sql");
    let mut statements = DFParserBuilder::new(sql)
        // The parser counts several for one level of parentheses.
        .with_recursion_limit(4 * limits.sql_depth_max)
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(parse)?;
    let statement = statements.pop_front().ok_or_else(|| refused("there is no statement; one SELECT is accepted"))?;
    if !statements.is_empty() {
        return Err(refused("there are several statements; exactly one is accepted"));
    }
    let relations = check(&statement, false)?;
    if relations > limits.sql_relations_max {
        let message = format!("{relations} tables are read; at most {} are accepted", limits.sql_relations_max);
        return Err(too_large(message));
    }
    Ok(Guarded { statement, relations })
}

/// Checks the size of a condition before it is parsed.
/// # Errors
/// [`Refusal`] of code `bad_sql` or `sql_too_large`.
pub fn measure(sql: &str, limits: &Limits) -> Result<(), Refusal> {
    if sql.len() > limits.sql_bytes_max {
        return Err(too_large(format!("{} bytes of SQL; at most {} are accepted", sql.len(), limits.sql_bytes_max)));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize();
    let tokens = tokens.map_err(|error| refused(error.to_string()))?;
    let (mut operators, mut depth, mut deepest) = (0usize, 0usize, 0usize);
    for token in &tokens {
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            Token::Whitespace(_) | Token::SemiColon | Token::EOF => {}
            Token::Word(word) if word.quote_style.is_none() => {
                let word = word.value.to_ascii_uppercase();
                // These nest like operators do, without parentheses.
                let nests = ["AND", "OR", "NOT", "IS", "IN", "LIKE", "ILIKE", "SIMILAR", "BETWEEN", "CASE", "WHEN", "ELSE", "AT"];
                let joins =
                    ["JOIN", "UNION", "INTERSECT", "EXCEPT", "DIV", "XOR", "COLLATE", "ESCAPE", "RLIKE", "REGEXP", "INTERVAL"];
                operators += usize::from(nests.contains(&word.as_str()) || joins.contains(&word.as_str()));
            }
            Token::Word(_) | Token::Number(..) | Token::Period => {}
            Token::SingleQuotedString(_) | Token::DoubleQuotedString(_) => {}
            // Commas are list items; whatever else there is, is some operator.
            _ => operators += 1,
        }
        deepest = deepest.max(depth);
    }
    if operators > limits.sql_operators_max {
        let message = format!("{operators} operators and list items; at most {} are accepted", limits.sql_operators_max);
        return Err(too_large(message));
    }
    if deepest > limits.sql_depth_max {
        return Err(too_large(format!("parentheses nest {deepest} deep; at most {} are accepted", limits.sql_depth_max)));
    }
    Ok(())
}

fn refused(message: impl Into<String>) -> Refusal {
    Refusal::bad_sql(message).at("sql")
}

fn too_large(message: String) -> Refusal {
    Refusal::limit("sql_too_large", message).at("sql")
}

/// Lets through a query, or EXPLAIN of one, over our tables, and counts the tables.
fn check(statement: &Statement, is_explained: bool) -> Result<usize, Refusal> {
    match statement {
        Statement::Statement(statement) => match &**statement {
            SqlStatement::Query(query) => check_query(query),
            _ => Err(refused("only SELECT, WITH and EXPLAIN of them are accepted")),
        },
        Statement::Explain(explain) if !is_explained => check(&explain.statement, true),
        _ => Err(refused("only SELECT, WITH and EXPLAIN of them are accepted")),
    }
}

fn check_query(query: &Query) -> Result<usize, Refusal> {
    let mut reads = Reads::default();
    let _ = query.visit(&mut reads);
    match reads.fault {
        Some(fault) => Err(refused(fault)),
        None => Ok(reads.total),
    }
}

/// Counts the tables that a query reads. A name of WITH is planned once for each use, so it counts what it reads itself
/// each time: chains of such names grow by powers.
#[derive(Default)]
struct Reads {
    total: usize,
    /// What each name of WITH reads. Of two with one name the greater counts.
    names: BTreeMap<String, usize>,
    /// The queries that are being walked, innermost last.
    open: Vec<Open>,
    fault: Option<String>,
}

struct Open {
    reads: usize,
    /// The bodies of its names of WITH, by address: they count where they are used, not where they stand.
    bodies: Vec<(*const Query, String)>,
}

impl Reads {
    fn fail(&mut self, fault: String) -> ControlFlow<()> {
        self.fault = Some(fault);
        ControlFlow::Break(())
    }
}

impl Visitor for Reads {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if query.with.as_ref().is_some_and(|with| with.recursive) {
            return self.fail("WITH RECURSIVE is not accepted".to_owned());
        }
        let ctes = query.with.iter().flat_map(|with| &with.cte_tables);
        let bodies = ctes.map(|cte| (std::ptr::from_ref(&*cte.query), normal(&cte.alias.name))).collect();
        self.open.push(Open { reads: 0, bodies });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let reads = self.open.pop().map_or(0, |open| open.reads);
        match self.open.last_mut() {
            None => self.total = reads,
            Some(outer) => match outer.bodies.iter().find(|(body, _)| std::ptr::eq(*body, query)) {
                Some((_, name)) => {
                    let known = self.names.entry(name.clone()).or_default();
                    *known = reads.max(*known);
                }
                None => outer.reads = outer.reads.saturating_add(reads),
            },
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, args: None, .. } => {
                let parts: Vec<String> =
                    name.0.iter().map(|part| part.as_ident().map_or_else(|| part.to_string(), normal)).collect();
                // A name with a schema is never a table of ours: they are all in one.
                let name = parts.join(".");
                let reads = match self.names.get(&name) {
                    Some(reads) => *reads,
                    None if tables::table(&name).is_some() => 1,
                    None => {
                        let known: Vec<&str> = tables::TABLES.iter().map(|table| table.name).collect();
                        return self.fail(format!("there is no table {name:?}; there are: {}", known.join(", ")));
                    }
                };
                if let Some(open) = self.open.last_mut() {
                    open.reads = open.reads.saturating_add(reads);
                }
                ControlFlow::Continue(())
            }
            TableFactor::Derived { .. } | TableFactor::NestedJoin { .. } | TableFactor::UNNEST { .. } => {
                ControlFlow::Continue(())
            }
            _ => self.fail("functions and other sources than tables are not accepted in FROM".to_owned()),
        }
    }
}

fn normal(ident: &datafusion::sql::sqlparser::ast::Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_ascii_lowercase() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, expected: Result<usize, &str>) {
        let found = statement(sql, &Limits::default());
        match (&found, expected) {
            (Ok(guarded), Ok(relations)) => assert_eq!(guarded.relations, relations, "{sql}"),
            (Err(refusal), Err(text)) => assert!(refusal.message.contains(text), "{sql}: {}", refusal.message),
            _ => panic!("{sql}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn queries_over_our_tables_pass() {
        check("SELECT 1", Ok(0));
        check("select count(*) from events where event = 'a;b' -- and; so on", Ok(1));
        check("SELECT * FROM EVENTS e JOIN experiments x ON e.experiment_id = x.id;", Ok(2));
        check("SELECT * FROM \"events\"", Ok(1));
        check("WITH a AS (SELECT * FROM events) SELECT * FROM a", Ok(1));
        check("WITH a AS (SELECT * FROM events) SELECT * FROM a x JOIN a y ON x.event_id = y.event_id", Ok(2));
        check("WITH a AS (SELECT 1 FROM events), b AS (SELECT 1 FROM a, a) SELECT (SELECT 1 FROM b LIMIT 1) FROM b", Ok(4));
        check("WITH a AS (WITH a AS (SELECT 1) SELECT * FROM a) SELECT * FROM a, events", Ok(1));
        check("SELECT (SELECT count(*) FROM variants) FROM events WHERE user_id IN (SELECT user_id FROM participation)", Ok(3));
        check("EXPLAIN SELECT * FROM events", Ok(1));
        check("EXPLAIN ANALYZE SELECT 1", Ok(0));
        check("SELECT u FROM unnest([1, 2]) t(u)", Ok(0));
        check("VALUES (1), (2)", Ok(0));
    }

    #[test]
    fn everything_else_is_refused() {
        check("", Err("no statement"));
        check(";", Err("no statement"));
        check("SELECT 1; SELECT 2", Err("exactly one"));
        check("SELECT 1; DROP TABLE events", Err("exactly one"));
        check("SELEC 1", Err("Expected"));
        check("SELECT '", Err("Unterminated"));
        for sql in [
            "INSERT INTO events VALUES (1)",
            "UPDATE events SET kind = 'x'",
            "DELETE FROM events",
            "CREATE TABLE t AS SELECT 1",
            "CREATE VIEW v AS SELECT 1",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
            "COPY events TO '/tmp/x.csv'",
            "COPY (SELECT 1) TO 'x.parquet'",
            "DROP TABLE events",
            "SET datafusion.execution.batch_size = 1",
            "RESET datafusion.execution.batch_size",
            "SHOW TABLES",
            "SHOW ALL",
            "DESCRIBE events",
            "BEGIN",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "CREATE FUNCTION f() RETURNS INT RETURN 1",
            "TRUNCATE events",
            "EXPLAIN EXPLAIN SELECT 1",
            "EXPLAIN INSERT INTO events VALUES (1)",
            "EXPLAIN COPY events TO 'x'",
            "GRANT SELECT ON events TO x",
            "CALL f()",
            "VACUUM",
            "KILL 1",
        ] {
            let refusal = statement(sql, &Limits::default()).expect_err(sql);
            assert_eq!(refusal.code, "bad_sql", "{sql}: {}", refusal.message);
        }
        check("SELECT * FROM keys", Err("no table \"keys\""));
        check("SELECT * FROM projects", Err("no table"));
        check("SELECT * FROM impressions", Err("no table"));
        check("SELECT * FROM information_schema.tables", Err("no table"));
        check("SELECT * FROM public.events", Err("no table"));
        check("SELECT * FROM weir.public.events", Err("no table"));
        check("SELECT * FROM '/etc/passwd'", Err("no table"));
        check("SELECT * FROM \"Events\"", Err("no table"));
        check("SELECT * FROM generate_series(1, 10000000000)", Err("not accepted in FROM"));
        check("SELECT * FROM range(10)", Err("not accepted in FROM"));
        check("SELECT * FROM TABLE(f())", Err("not accepted in FROM"));
        check("WITH RECURSIVE a AS (SELECT 1 UNION ALL SELECT * FROM a) SELECT * FROM a", Err("RECURSIVE"));
        check("SELECT (SELECT 1 FROM keys)", Err("no table"));
        check("SELECT 1 WHERE EXISTS (SELECT 1 FROM keys)", Err("no table"));
        check("WITH a AS (SELECT * FROM keys) SELECT 1", Err("no table"));
        check("SELECT 1 UNION SELECT digest FROM keys", Err("no table"));
    }

    #[test]
    fn sizes_are_measured_before_parsing() {
        let limits = Limits::default();
        let sums = |count: usize| format!("SELECT {}", vec!["1"; count + 1].join("+"));
        assert!(statement(&sums(500), &limits).is_ok());
        let doubled = |level: usize| format!("t{} AS (SELECT 1 FROM t{level} a, t{level} b)", level + 1);
        let chain: Vec<String> = (0..70).map(doubled).collect();
        let doubling = format!("WITH t0 AS (SELECT 1 FROM events), {} SELECT 1 FROM t70", chain.join(", "));
        for sql in [
            sums(501),
            sums(30_000),
            format!("SELECT {}1", "- ".repeat(2_000)),
            format!("SELECT {}true", "NOT ".repeat(2_000)),
            format!("SELECT 1 WHERE 1 IN ({})", vec!["1"; 5_000].join(",")),
            format!("SELECT {}", vec!["true"; 2_000].join(" OR ")),
            format!("SELECT {}1{}", "(".repeat(51), ")".repeat(51)),
            format!("SELECT {}1{}", "[".repeat(5_000), "]".repeat(5_000)),
            format!("SELECT {}", "CASE WHEN true THEN 1 ELSE ".repeat(300)),
            format!("SELECT 1 {}", "UNION SELECT 1 ".repeat(600)),
            format!("SELECT 1{}", "::int".repeat(600)),
            format!("SELECT '{}'", "x".repeat(65_537)),
            format!("SELECT * FROM {}", ["events"; 10].join(",")),
            doubling.clone(),
        ] {
            let refusal = statement(&sql, &limits).expect_err("too large");
            assert_eq!(refusal.code, "sql_too_large", "{}: {}", &sql[..40.min(sql.len())], refusal.message);
        }
        assert!(statement(&format!("SELECT * FROM {}", ["events"; 9].join(",")), &limits).is_ok());
    }
}
