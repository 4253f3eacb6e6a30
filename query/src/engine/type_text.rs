//! Which types a query may name, in SQL (`CAST(x AS INT[])`) and in texts (`arrow_cast(x, 'List(Int32)')`).
//!
//! Arrow's parser of texts recurses without a bound: `List(` 3,000 times ends the process in a stack overflow. DataFusion
//! calls it when it asks for the type of a call, the JSON functions' rewrite when they look for a cast, and DataFusion again
//! when it turns a call into a cast, by when a text may have come from elsewhere in the query. Each of them meets a check.
//!
//! Types of a fixed size take their memory even for null, beside the memory pool: `INT[9999]` three times nested is 4 TB.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, DataFusionError, Result, ScalarValue, plan_err};
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::planner::TypePlanner;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::sql::sqlparser::ast::{ArrayElemTypeDef, DataType as SqlType};

/// All functions of DataFusion that read a type from a text.
const FUNCTIONS: [&str; 2] = ["arrow_cast", "arrow_try_cast"];
/// Parentheses that such a text may open.
const PARENTHESES_MAX: usize = 50;
/// Bytes that one value of such a type may take before anything is in it.
const FIXED_BYTES_MAX: usize = 1_024;

/// A type in a text that is not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TypeTooLarge {
    #[error("{function}: the type opens {found} parentheses; at most {PARENTHESES_MAX} are accepted")]
    Nested { function: String, found: usize },
    #[error("{function}: each value of the type takes {bytes} bytes; at most {FIXED_BYTES_MAX} are accepted")]
    Wide { function: String, bytes: usize },
}

/// Puts the checks in front of the functions and of all rewrites that are registered later.
/// # Errors
/// Those of DataFusion.
pub(crate) fn guard(registry: &mut dyn FunctionRegistry) -> Result<()> {
    for name in FUNCTIONS {
        let inner = registry.udf(name)?;
        registry.register_udf(Arc::new(ScalarUDF::from(Guarded { inner })))?;
    }
    registry.register_function_rewrite(Arc::new(CheckLiterals))
}

/// Refuses types of SQL with a fixed size, and leaves the others to DataFusion.
#[derive(Debug)]
pub(crate) struct SqlTypes;

impl TypePlanner for SqlTypes {
    fn plan_type_field(&self, sql_type: &SqlType) -> Result<Option<FieldRef>> {
        match sql_type {
            SqlType::Array(ArrayElemTypeDef::SquareBracket(_, Some(size))) => {
                plan_err!("an array of the fixed size {size} is not accepted; write the type without it, such as INT[]")
            }
            _ => Ok(None),
        }
    }
}

fn check(function: &str, text: &str) -> Result<()> {
    // Quotes are not looked into: a parenthesis within a field's name counts.
    let found = text.matches('(').count();
    if found > PARENTHESES_MAX {
        let error = TypeTooLarge::Nested { function: function.to_owned(), found };
        return Err(DataFusionError::External(Box::new(error)));
    }
    // The function itself says what is wrong with a text that is no type.
    let bytes = text.parse().map_or(0, |data_type| fixed_bytes(&data_type));
    if bytes > FIXED_BYTES_MAX {
        let error = TypeTooLarge::Wide { function: function.to_owned(), bytes };
        return Err(DataFusionError::External(Box::new(error)));
    }
    Ok(())
}

/// Returns how many bytes a null of this type takes, about. Not more than 50 levels deep.
fn fixed_bytes(data_type: &DataType) -> usize {
    // A negative size is an error that Arrow meets as a panic.
    let size = |size: &i32| usize::try_from(*size).unwrap_or(usize::MAX);
    match data_type {
        DataType::FixedSizeBinary(bytes) => size(bytes),
        DataType::FixedSizeList(item, items) => size(items).saturating_mul(fixed_bytes(item.data_type()).max(1)),
        DataType::Struct(fields) => fields.iter().fold(0, |all: usize, field| all.saturating_add(fixed_bytes(field.data_type()))),
        DataType::Union(fields, _) => {
            fields.iter().fold(0, |all: usize, (_, field)| all.saturating_add(fixed_bytes(field.data_type())))
        }
        DataType::Dictionary(_, values) => fixed_bytes(values),
        DataType::RunEndEncoded(_, values) => fixed_bytes(values.data_type()),
        // A null list holds nothing, but its items are no smaller when there are some.
        DataType::List(item) | DataType::LargeList(item) | DataType::ListView(item) | DataType::LargeListView(item) => {
            fixed_bytes(item.data_type())
        }
        DataType::Map(entries, _) => fixed_bytes(entries.data_type()),
        _ => 16,
    }
}

fn check_value(function: &str, value: &ScalarValue) -> Result<()> {
    value.try_as_str().flatten().map_or(Ok(()), |text| check(function, text))
}

fn check_args(function: &str, args: &[Expr]) -> Result<()> {
    let mut values = args.iter().filter_map(Expr::as_literal);
    values.try_for_each(|value| check_value(function, value))
}

/// One of the functions, behind the check.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Guarded {
    inner: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for Guarded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let mut values = args.scalar_arguments.iter().flatten();
        values.try_for_each(|value| check_value(self.name(), value))?;
        self.inner.return_field_from_args(args)
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        check_args(self.name(), &args)?;
        self.inner.simplify(args, context)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.inner.invoke_with_args(args)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

/// Rewrites nothing; fails on a call with a text that is too deep.
#[derive(Debug)]
struct CheckLiterals;

impl FunctionRewrite for CheckLiterals {
    fn name(&self) -> &str {
        "check_type_texts"
    }

    fn rewrite(&self, expr: Expr, _: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        if let Expr::ScalarFunction(call) = &expr
            && FUNCTIONS.contains(&call.func.name())
        {
            check_args(call.func.name(), &call.args)?;
        }
        Ok(Transformed::no(expr))
    }
}
