//! How `FILE.weir-rejected` is written: the refused rows themselves, in the file's own format, each with the reason at its end.

use super::names::REASON;
use super::source::{Cell, Encoding, Fault, cells, object};

/// The format of the refused rows of a file.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    form: Form,
    encoding: Encoding,
}

/// What the rows are written as.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// A JSON object in each line: of JSON and of Parquet.
    Lines,
    /// The file's header and records.
    Csv(Csv),
}

/// How a CSV file is written.
#[derive(Clone, Debug)]
pub(super) struct Csv {
    /// What stands before the first record, the column of the reason in the header.
    head: Vec<u8>,
    delimiter: u8,
    newline: &'static [u8],
    /// Where the file has a reason already, since it holds refused rows itself.
    reason_at: Option<usize>,
    columns: usize,
}

impl Form {
    /// Says how its characters are written.
    pub(super) fn in_encoding(self, encoding: Encoding) -> Refused {
        Refused { form: self, encoding }
    }
}

impl Refused {
    /// Returns what stands before the first row.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut head = match (&self.form, self.encoding) {
            // No line of JSON begins with the mark of UTF-8.
            (Form::Lines, Encoding::Utf8 { .. }) => return Vec::new(),
            _ => self.encoding.mark().to_vec(),
        };
        if let Form::Csv(csv) = &self.form {
            head.extend(self.encoding.encode(csv.head.clone()));
        }
        head
    }

    /// Returns a row and its reason.
    pub(super) fn row(&self, number: u64, fault: &Fault, raw: &[u8]) -> Vec<u8> {
        let reason = format!("row {number}: {}: {}", fault.code, fault.message).replace(|letter: char| letter.is_control(), " ");
        let text = match &self.form {
            Form::Lines => line(raw, &reason),
            Form::Csv(csv) => csv.row(raw, &reason),
        };
        self.encoding.encode(text)
    }
}

/// Writes a row of JSON, with the reason as its last member.
fn line(raw: &[u8], reason: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(raw);
    let members = if matches!(text, std::borrow::Cow::Borrowed(_)) { cells(&text) } else { None };
    let mut line = match members {
        Some(mut members) => {
            members.retain(|(name, _)| name != REASON);
            members.push((REASON.to_owned(), Cell::Text(reason.to_owned())));
            object(&members)
        }
        None => object(&[(REASON.to_owned(), Cell::Text(reason.to_owned())), ("line".to_owned(), Cell::Text(text.into_owned()))]),
    };
    line.push('\n');
    line.into_bytes()
}

impl Csv {
    /// Makes the format of a file. `before`: what stands before its header, such as `sep=;` in a line; `header`: as it is written.
    pub(super) fn new(before: Vec<u8>, header: &[u8], delimiter: u8, newline: &'static [u8], columns: &[String]) -> Self {
        let reason_at = columns.iter().position(|name| name == REASON);
        let mut csv = Csv { head: before, delimiter, newline, reason_at, columns: columns.len() };
        let mut header = csv.without_reason(header);
        header.push(delimiter);
        header.extend_from_slice(REASON.as_bytes());
        csv.head.extend(header);
        csv.head.extend_from_slice(newline);
        csv
    }

    fn row(&self, raw: &[u8], reason: &str) -> Vec<u8> {
        let mut row = self.without_reason(raw);
        row.push(self.delimiter);
        row.push(b'"');
        row.extend_from_slice(reason.replace('"', "\"\"").as_bytes());
        row.push(b'"');
        row.extend_from_slice(self.newline);
        row
    }

    /// Returns a record without the reason that it may have: as it was written, where nothing is to be taken out.
    fn without_reason(&self, raw: &[u8]) -> Vec<u8> {
        let has_open_quote = raw.iter().filter(|byte| **byte == b'"').count() % 2 == 1;
        if self.reason_at.is_none() && !has_open_quote {
            return raw.to_vec();
        }
        let mut reader = csv::ReaderBuilder::new().delimiter(self.delimiter).has_headers(false).flexible(true).from_reader(raw);
        let mut record = csv::ByteRecord::new();
        // Reading from memory fails for no bytes.
        let _ = reader.read_byte_record(&mut record);
        let is_reason = |(place, field): (usize, &[u8])| match self.reason_at {
            Some(reason_at) if record.len() == self.columns => place == reason_at,
            // With another number of fields the reason was still written last.
            Some(_) => place + 1 == record.len() && field.starts_with(b"row "),
            None => false,
        };
        let kept = record.iter().enumerate().filter(|field| !is_reason(*field)).map(|(_, field)| field);
        let mut writer = csv::WriterBuilder::new().delimiter(self.delimiter).from_writer(Vec::new());
        let _ = writer.write_record(kept);
        let mut written = writer.into_inner().unwrap_or_default();
        if written.last() == Some(&b'\n') {
            written.pop();
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::import::source::tests::source;

    fn csv(before: &str, header: &str, delimiter: u8, columns: &[&str]) -> Refused {
        let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
        let form = Form::Csv(Csv::new(before.into(), header.as_bytes(), delimiter, b"\r\n", &columns));
        form.in_encoding(Encoding::Utf8 { has_mark: false })
    }

    fn check(refused: &Refused, raw: &[u8], expected: &[u8]) {
        let found = refused.row(7, &Fault::new("code", "why \"x\"\n"), raw);
        assert_eq!(String::from_utf8_lossy(&found), String::from_utf8_lossy(expected));
    }

    #[test]
    fn records_stay_as_they_were_written() {
        let refused = csv("sep=;\r\n", "\"id\"; Value", b';', &["id", "value"]);
        assert_eq!(refused.head(), b"sep=;\r\n\"id\"; Value;weir_rejected\r\n");
        check(&refused, b"\"1\"; \"\"", b"\"1\"; \"\";\"row 7: code: why \"\"x\"\" \"\r\n");
        check(&refused, b"1;\xe4", b"1;\xe4;\"row 7: code: why \"\"x\"\" \"\r\n");
        check(&refused, b"1;\"never closed", b"1;never closed;\"row 7: code: why \"\"x\"\" \"\r\n");
    }

    #[test]
    fn a_reason_of_before_is_replaced() {
        let refused = csv("", "id,weir_rejected,value", b',', &["id", "weir_rejected", "value"]);
        assert_eq!(refused.head(), b"id,value,weir_rejected\r\n");
        check(&refused, b"1,row 3: old,\"19,90\"", b"1,\"19,90\",\"row 7: code: why \"\"x\"\" \"\r\n");
        check(&refused, b"1,\"row 3: old\"", b"1,\"row 7: code: why \"\"x\"\" \"\r\n");
    }

    #[test]
    fn refused_rows_are_read_again_in_their_encoding() {
        for encoding in
            [Encoding::Utf8 { has_mark: true }, Encoding::Utf16 { is_little: true }, Encoding::Utf16 { is_little: false }]
        {
            let columns = ["id".to_owned(), "name".to_owned()];
            let refused = Form::Csv(Csv::new(Vec::new(), b"id;name", b';', b"\n", &columns)).in_encoding(encoding);
            let row = refused.row(7, &Fault::new("code", "why; \"x\""), "1;\"Zoë;😀\"".as_bytes());
            let (source, _folder) = source("x.csv.weir-rejected", &[refused.head(), row].concat());
            let rows: Vec<_> = source.read().expect("begins").rows.map(|row| row.expect("can be read").cells).collect();
            let cell = |name: &str, text: &str| (name.to_owned(), Cell::Text(text.to_owned()));
            assert_eq!(rows, [Ok(vec![cell("id", "1"), cell("name", "Zoë;😀")])], "{encoding:?}");
        }
    }

    #[test]
    fn lines_keep_their_members_or_their_text() {
        let refused = Form::Lines.in_encoding(Encoding::Utf8 { has_mark: true });
        assert_eq!(refused.head(), b"");
        let reason = r#""weir_rejected":"row 7: code: why \"x\" ""#;
        check(&refused, br#"{"a": 1.50,"b":{"c":[]}}"#, format!("{{\"a\":1.50,\"b\":{{\"c\":[]}},{reason}}}\n").as_bytes());
        check(&refused, br#"{"weir_rejected":"old","a":1}"#, format!("{{\"a\":1,{reason}}}\n").as_bytes());
        check(&refused, b"{}", format!("{{{reason}}}\n").as_bytes());
        check(&refused, b"{\"a\":", format!("{{{reason},\"line\":\"{{\\\"a\\\":\"}}\n").as_bytes());
        check(&refused, b"\xff", format!("{{{reason},\"line\":\"\u{fffd}\"}}\n").as_bytes());
    }
}
