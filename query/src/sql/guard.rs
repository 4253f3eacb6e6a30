//! Which SQL is planned at all: one statement that only reads our tables, and small enough to plan.
//!
//! Size is judged on tokens, before anything recursive sees the text: a chain of 2,000 operators is a tree 2,000 deep, which
//! has ended whole processes in a stack overflow.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{
    Expr, GroupByExpr, GroupByWithModifier, Query, Select, Statement as SqlStatement, TableFactor, Visit, Visitor,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::config::Limits;
use crate::http::error::ApiError;
use crate::source::{rollups, tables};

/// A statement that may be planned.
#[derive(Debug)]
pub struct Guarded {
    /// The statement.
    pub statement: Statement,
    /// How many times it reads one of our tables.
    pub relations: usize,
    /// Whether some of them are rollups.
    pub reads_rollups: bool,
}

/// Reads one statement and checks it.
/// # Errors
/// [`ApiError`] of code `bad_sql` or `sql_too_large`; nothing was planned.
pub fn statement(sql: &str, limits: &Limits) -> Result<Guarded, ApiError> {
    measure(sql, limits)?;
    let parse = |error: datafusion::common::DataFusionError| ApiError::bad_sql(error.strip_backtrace()).at("sql");
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
    let Checked { relations, reads_rollups } = check(&statement, false, limits)?;
    if relations > limits.sql_relations_max {
        let message = format!("{relations} tables are read; at most {} are accepted", limits.sql_relations_max);
        return Err(too_large(message));
    }
    Ok(Guarded { statement, relations, reads_rollups })
}

/// Checks the size of a text of SQL on its tokens, before it is parsed.
/// # Errors
/// [`ApiError`] of code `bad_sql` or `sql_too_large`, whose message names the place.
pub fn measure(sql: &str, limits: &Limits) -> Result<(), ApiError> {
    if sql.len() > limits.sql_bytes_max {
        return Err(too_large(format!("{} bytes of SQL; at most {} are accepted", sql.len(), limits.sql_bytes_max)));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location();
    let tokens = tokens.map_err(|error| refused(error.to_string()))?;
    let mut size = Size::default();
    for TokenWithSpan { token, span } in &tokens {
        size.add(token);
        let place = format_args!("line {}, column {}", span.start.line, span.start.column);
        if size.operators > limits.sql_operators_max {
            let max = limits.sql_operators_max;
            return Err(too_large(format!("{place}: more than the {max} operators and list items that are accepted")));
        }
        if size.clauses > limits.sql_clauses_max {
            let max = limits.sql_clauses_max;
            return Err(too_large(format!(
                "{place}: more than the {max} SELECT, FROM, JOIN, UNION and the like that are accepted"
            )));
        }
        if size.retries() > RETRIES_MAX {
            return Err(too_large(format!(
                "{place}: CASE, CAST, -> and the like nest deeper than the {RETRIES_MAX} levels that are accepted"
            )));
        }
        if size.deepest > limits.sql_depth_max {
            let max = limits.sql_depth_max;
            return Err(too_large(format!(
                "{place}: parentheses, brackets, types and names nest deeper than the {max} levels that are accepted"
            )));
        }
    }
    Ok(())
}

/// How large the tree of a text can be at most, token by token. Whatever may nest counts: what the parser builds in a
/// loop is walked by recursion afterwards.
#[derive(Default)]
struct Size {
    /// Operators, list items and keywords that make a tree one level deeper without parentheses.
    operators: usize,
    /// Words that make a node of the plan: the optimizer walks all of them for each of them.
    clauses: usize,
    /// Types such as `ARRAY<..>`, which close with `>` or `>>`; they are added up instead of matched.
    angles: usize,
    /// The open parentheses, outermost first, and the text outside of them.
    open: Vec<Height>,
    outside: Height,
    deepest: usize,
    /// Open `CASE`s.
    cases: usize,
    /// `INTERVAL`s before something else than a literal, all of them.
    intervals: usize,
    /// JSON operators after each other: planning takes two to the power of their number.
    arrows: usize,
    last: Last,
}

/// How deep expressions and types nest between two parentheses.
#[derive(Clone, Copy, Default)]
struct Height {
    /// The one being read: `a[1][2]` is two, `(a)[1]` too.
    present: usize,
    highest: usize,
    /// Whether the parser reads what is in these parentheses twice.
    is_read_twice: bool,
}

/// The token before, as far as it matters.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Last {
    Period,
    /// `ARRAY`, `MAP` or `STRUCT`: a `<` after it opens a type.
    NestedType,
    Interval,
    /// Another one of [`READ_TWICE`].
    ReadTwice,
    #[default]
    Other,
}

impl Size {
    fn add(&mut self, token: &Token) {
        let mut last = Last::Other;
        let is_literal = matches!(token, Token::SingleQuotedString(_) | Token::Number(..) | Token::Whitespace(_) | Token::EOF);
        self.intervals += usize::from(self.last == Last::Interval && !is_literal);
        self.arrows = match token {
            Token::Arrow | Token::LongArrow => self.arrows + 1,
            Token::Word(_) | Token::Comma => 0,
            _ => self.arrows,
        };
        match token {
            // Comments are whitespace too.
            Token::Whitespace(_) | Token::EOF => return,
            Token::LParen | Token::LBracket | Token::LBrace => {
                let is_read_twice = matches!(self.last, Last::ReadTwice | Last::NestedType);
                self.open.push(Height { is_read_twice, ..Height::default() });
                self.deepest = self.deepest.max(self.open.len());
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                let inside = self.open.pop().unwrap_or_default().highest;
                self.grow(1 + inside);
            }
            Token::Period => {
                self.grow(1);
                last = Last::Period;
            }
            Token::Word(word) if word.quote_style.is_none() => {
                let word = word.value.to_ascii_uppercase();
                self.operators += usize::from(NESTING_WORDS.contains(&word.as_str()));
                self.clauses += usize::from(CLAUSES.contains(&word.as_str()));
                match word.as_str() {
                    "ARRAY" | "MAP" | "STRUCT" => last = Last::NestedType,
                    "INTERVAL" => last = Last::Interval,
                    "CASE" => self.cases += 1,
                    "END" => self.cases = self.cases.saturating_sub(1),
                    other if READ_TWICE.contains(&other) => last = Last::ReadTwice,
                    _ => {}
                }
                self.start_unless_named();
            }
            Token::Word(_) => self.start_unless_named(),
            Token::Number(..) | Token::SingleQuotedString(_) | Token::DoubleQuotedString(_) | Token::SemiColon => self.start(),
            // Commas are list items; whatever else there is, is some operator.
            other => {
                self.operators += 1;
                if *other == Token::Lt && self.last == Last::NestedType {
                    self.angles += 1;
                    self.deepest = self.deepest.max(self.angles);
                }
                self.start();
            }
        }
        self.last = last;
    }

    /// How often the parser may come to read the present place again: twice for each of these.
    fn retries(&self) -> usize {
        self.cases + self.intervals + self.arrows + self.open.iter().filter(|height| height.is_read_twice).count()
    }

    fn height(&mut self) -> &mut Height {
        self.open.last_mut().unwrap_or(&mut self.outside)
    }

    /// The present expression gets deeper.
    fn grow(&mut self, levels: usize) {
        let height = self.height();
        height.present += levels;
        height.highest = height.highest.max(height.present);
        self.deepest = self.deepest.max(self.height().highest);
    }

    /// Another expression begins.
    fn start(&mut self) {
        self.height().present = 0;
    }

    fn start_unless_named(&mut self) {
        if self.last != Last::Period {
            self.start();
        }
    }
}

/// Levels of what the parser reads twice. It tries these words as syntax first, and as the name of a column or function when
/// that fails: a text with a fault at its end takes two to the power of its levels.
const RETRIES_MAX: usize = 10;

/// Words whose parentheses the parser reads twice, beside those of types.
const READ_TWICE: &[&str] = &[
    "CAST",
    "CEIL",
    "CONVERT",
    "EXISTS",
    "EXTRACT",
    "FLOOR",
    "OVERLAY",
    "POSITION",
    "SAFE_CAST",
    "SUBSTR",
    "SUBSTRING",
    "TRIM",
    "TRY_CAST",
    "TRY_CONVERT",
];

const CLAUSES: &[&str] = &["APPLY", "EXCEPT", "FROM", "INTERSECT", "JOIN", "MINUS", "SELECT", "STRAIGHT_JOIN", "UNION", "VALUES"];

/// Words that nest like operators do, without parentheses.
const NESTING_WORDS: &[&str] = &[
    "AND",
    "APPLY",
    "AT",
    "BETWEEN",
    "CASE",
    "COLLATE",
    "DIV",
    "ELSE",
    "ESCAPE",
    "EXCEPT",
    "EXPLAIN",
    "ILIKE",
    "IN",
    "INTERSECT",
    "INTERVAL",
    "IS",
    "JOIN",
    "LIKE",
    "MATCH",
    "MATCH_RECOGNIZE",
    "MEMBER",
    "MINUS",
    "NOT",
    "OPERATOR",
    "OR",
    "OVERLAPS",
    "PIVOT",
    "REGEXP",
    "RLIKE",
    "SIMILAR",
    "STRAIGHT_JOIN",
    "UNION",
    "UNPIVOT",
    "WHEN",
    "XOR",
];

fn refused(message: impl Into<String>) -> ApiError {
    ApiError::bad_sql(message).at("sql")
}

fn too_large(message: String) -> ApiError {
    ApiError::sql_too_large(message).at("sql")
}

/// Lets through a query, or EXPLAIN of one, over our tables, and counts the tables.
/// What a statement reads.
struct Checked {
    relations: usize,
    reads_rollups: bool,
}

fn check(statement: &Statement, is_explained: bool, limits: &Limits) -> Result<Checked, ApiError> {
    match statement {
        Statement::Statement(statement) => match &**statement {
            SqlStatement::Query(query) => check_query(query, limits),
            _ => Err(refused("only SELECT, WITH and EXPLAIN of them are accepted")),
        },
        Statement::Explain(explain) if !is_explained => check(&explain.statement, true, limits),
        _ => Err(refused("only SELECT, WITH and EXPLAIN of them are accepted")),
    }
}

fn check_query(query: &Query, limits: &Limits) -> Result<Checked, ApiError> {
    let mut reads = Reads::default();
    let _ = query.visit(&mut reads);
    if let Some(fault) = reads.fault {
        return Err(refused(fault));
    }
    if reads.doublings_max > limits.sql_subqueries_depth_max {
        let (found, max) = (reads.doublings_max, limits.sql_subqueries_depth_max);
        return Err(too_large(format!(
            "subqueries in expressions and WITH within WITH nest {found} levels deep; at most {max} are accepted"
        )));
    }
    if reads.grouping_sets > limits.sql_grouping_sets_max {
        let max = limits.sql_grouping_sets_max;
        return Err(too_large(format!(
            "CUBE, ROLLUP and GROUPING SETS make more than the {max} grouping sets that are accepted"
        )));
    }
    Ok(Checked { relations: reads.total, reads_rollups: reads.reads_rollups })
}

/// Returns how many grouping sets a GROUP BY makes; 1 for a plain one.
fn grouping_sets(group_by: &GroupByExpr) -> usize {
    let cube = |columns: usize| 1usize.checked_shl(u32::try_from(columns).unwrap_or(u32::MAX)).unwrap_or(usize::MAX);
    let of_expr = |expr: &Expr| match expr {
        Expr::Cube(columns) => cube(columns.len()),
        Expr::Rollup(columns) => columns.len() + 1,
        Expr::GroupingSets(sets) => sets.len(),
        _ => 1,
    };
    let (exprs, modifiers): (&[Expr], _) = match group_by {
        GroupByExpr::All(modifiers) => (&[], modifiers),
        GroupByExpr::Expressions(exprs, modifiers) => (exprs, modifiers),
    };
    let of_modifier = |modifier: &GroupByWithModifier| match modifier {
        GroupByWithModifier::Rollup => exprs.len() + 1,
        GroupByWithModifier::Cube => cube(exprs.len()),
        GroupByWithModifier::Totals => 2,
        GroupByWithModifier::GroupingSets(expr) => of_expr(expr),
    };
    // Those beside each other are combined, each with each.
    exprs.iter().map(of_expr).chain(modifiers.iter().map(of_modifier)).fold(1, usize::saturating_mul)
}

/// Counts the tables that a query reads. A name of WITH is planned once for each use, so it counts what it reads itself
/// each time: chains of such names grow by powers.
#[derive(Default)]
struct Reads {
    total: usize,
    reads_rollups: bool,
    /// What each name of WITH reads. Of two with one name the greater counts.
    names: BTreeMap<String, usize>,
    /// The queries that are being walked, innermost last.
    open: Vec<Open>,
    /// Levels around the present place that double the time of planning each: DataFusion walks a subquery of an expression,
    /// and a body of WITH, twice for each time that it walks what is around it.
    doublings: usize,
    doublings_max: usize,
    /// Of all SELECTs that make more than one.
    grouping_sets: usize,
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

impl Reads {
    fn enter(&mut self) {
        self.doublings += 1;
        self.doublings_max = self.doublings_max.max(self.doublings);
    }
}

fn has_subquery(expr: &Expr) -> bool {
    matches!(expr, Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. })
}

impl Visitor for Reads {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if query.with.as_ref().is_some_and(|with| with.recursive) {
            return self.fail("WITH RECURSIVE is not accepted".to_owned());
        }
        if query.with.is_some() {
            self.enter();
        }
        let ctes = query.with.iter().flat_map(|with| &with.cte_tables);
        let bodies = ctes.map(|cte| (std::ptr::from_ref(&*cte.query), normal(&cte.alias.name))).collect();
        self.open.push(Open { reads: 0, bodies });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.doublings -= usize::from(query.with.is_some());
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

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        let sets = grouping_sets(&select.group_by);
        self.grouping_sets = self.grouping_sets.saturating_add(if sets > 1 { sets } else { 0 });
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if has_subquery(expr) {
            self.enter();
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.doublings -= usize::from(has_subquery(expr));
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
                    // Which there are is known only in the snapshot.
                    None if name.starts_with(rollups::PREFIX) => {
                        self.reads_rollups = true;
                        1
                    }
                    None => {
                        let known: Vec<&str> = tables::TABLES.iter().map(|table| table.name).collect();
                        return self.fail(format!(
                            "there is no table {name:?}; there are: {}, and {}NAME of each rollup",
                            known.join(", "),
                            rollups::PREFIX
                        ));
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
            (Err(api_error), Err(text)) => assert!(api_error.message.contains(text), "{sql}: {}", api_error.message),
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
        check("SELECT * FROM rollup_daily r JOIN rollup_daily_states s ON r.day = s.day", Ok(2));
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
            let api_error = statement(sql, &Limits::default()).expect_err(sql);
            assert_eq!(api_error.code.to_string(), "bad_sql", "{sql}: {}", api_error.message);
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
            format!("SELECT CAST(NULL AS INT{})", "[]".repeat(51)),
            format!("SELECT CAST(NULL AS {}INT{})", "ARRAY<".repeat(51), ">".repeat(51)),
            format!("SELECT a{} FROM events", "[1]".repeat(51)),
            format!("SELECT a{} FROM events", " . b".repeat(51)),
            "SELECT ".to_owned() + &"CASE WHEN true THEN ".repeat(11),
            "SELECT ".to_owned() + &"CAST(".repeat(11),
            "SELECT ".to_owned() + &"INTERVAL ".repeat(12),
            "SELECT properties".to_owned() + &"->'a'".repeat(11),
            format!("SELECT {}properties{}", "(".repeat(11), "->'a')".repeat(11)),
            format!("SELECT {}1{}", "(".repeat(30), ")[1]".repeat(30)),
            format!("SELECT 1 {}", "MINUS SELECT 1 ".repeat(600)),
            "EXPLAIN ".repeat(600) + "SELECT 1",
            format!("SELECT '{}'", "x".repeat(65_537)),
            format!("SELECT * FROM {}", ["events"; 10].join(",")),
            doubling.clone(),
            format!("{}SELECT 1{}", "SELECT (".repeat(9), ")".repeat(9)),
            format!("{}SELECT 1{}", "SELECT 1 WHERE EXISTS (".repeat(9), ")".repeat(9)),
            format!("{}SELECT 1{}", "SELECT 1 WHERE 1 IN (".repeat(9), ")".repeat(9)),
            format!("{}SELECT 1{}", "WITH a AS (".repeat(9), ") SELECT * FROM a".repeat(9)),
            "SELECT 1 FROM events GROUP BY CUBE (event, kind, city, country, region, experiment, variant)".to_owned(),
            format!("SELECT 1 FROM events GROUP BY CUBE ({})", ["event"; 13].join(", ")),
            format!("SELECT 1 FROM events GROUP BY CUBE ({})", ["event"; 70].join(", ")),
            format!("SELECT 1 FROM events GROUP BY ROLLUP ({})", ["event"; 64].join(", ")),
            format!("SELECT 1 FROM events GROUP BY GROUPING SETS ({})", ["(event)"; 65].join(", ")),
            "SELECT 1 FROM events GROUP BY ROLLUP (event, kind), CUBE (city, country, region), ROLLUP (variant, experiment)"
                .to_owned(),
            format!("SELECT 1 FROM events GROUP BY {} WITH CUBE", ["event"; 7].join(", ")),
            format!("{} UNION ALL {0}", "SELECT 1 FROM events GROUP BY CUBE (event, kind, city, country, region, variant)"),
        ] {
            let api_error = statement(&sql, &limits).expect_err("too large");
            assert_eq!(api_error.code.to_string(), "sql_too_large", "{}: {}", &sql[..40.min(sql.len())], api_error.message);
        }
        for sql in [
            format!("SELECT * FROM {}", ["events"; 9].join(",")),
            format!("SELECT {}1{}", "(".repeat(50), ")".repeat(50)),
            format!("SELECT CAST(NULL AS INT{})", "[]".repeat(49)),
            format!("SELECT {} FROM events", vec!["events.event"; 200].join(", ")),
            format!("SELECT {}", vec!["CAST(NULL AS INT[])"; 200].join(", ")),
            format!("{}SELECT 1{}", "SELECT (".repeat(8), ")".repeat(8)),
            "SELECT 1 FROM events GROUP BY CUBE (event, kind, city, country, region, variant)".to_owned(),
            "SELECT 1 FROM events GROUP BY CUBE (event, kind), ROLLUP (city, country)".to_owned(),
        ] {
            statement(&sql, &limits).unwrap_or_else(|api_error| panic!("{sql}: {api_error}"));
        }
        let deep = format!("SELECT 1,\n  CAST(NULL AS INT{})", "[]".repeat(3_000));
        let api_error = statement(&deep, &limits).expect_err("too deep");
        assert!(api_error.message.starts_with("line 2, column 120: ") && api_error.message.contains("50 levels"), "{api_error}");
    }
}
