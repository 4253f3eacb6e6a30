//! Writes databases of MaxMind's format, version 2.0: a tree of bits that leads to maps. Source: the MaxMind DB File Format Specification.

/// A network of IPv4 (address, bits of its prefix) with country, region and city.
pub(crate) type Network<'a> = ([u8; 4], u32, [&'a str; 3]);

/// A place in the tree: another node, data at an offset, or nothing.
#[derive(Clone, Copy)]
enum Child {
    Empty,
    Node(usize),
    Data(usize),
}

/// Makes a database of some networks, as GeoLite2-City has its records.
pub(crate) fn database(networks: &[Network<'_>]) -> Vec<u8> {
    let mut nodes = vec![[Child::Empty; 2]];
    let mut data = Vec::new();
    for (address, bits, [country, region, city]) in networks {
        let at = data.len();
        map(&mut data, 3);
        text(&mut data, "country");
        map(&mut data, 1);
        text(&mut data, "iso_code");
        text(&mut data, country);
        text(&mut data, "subdivisions");
        data.extend_from_slice(&[1, 4]); // an array of one
        map(&mut data, 1);
        names(&mut data, region);
        text(&mut data, "city");
        map(&mut data, 1);
        names(&mut data, city);

        let address = u32::from_be_bytes(*address);
        let mut node = 0;
        for bit in 0..*bits {
            let side = (address >> (31 - bit) & 1) as usize;
            if bit + 1 == *bits {
                nodes[node][side] = Child::Data(at);
                break;
            }
            node = match nodes[node][side] {
                Child::Node(next) => next,
                _ => {
                    nodes.push([Child::Empty; 2]);
                    nodes[node][side] = Child::Node(nodes.len() - 1);
                    nodes.len() - 1
                }
            };
        }
    }
    let count = nodes.len();
    let mut out = Vec::new();
    for child in nodes.iter().flatten() {
        let value = match child {
            Child::Empty => count,
            Child::Node(node) => *node,
            // The data begins behind 16 bytes of zero.
            Child::Data(at) => count + 16 + at,
        };
        out.extend_from_slice(&(value as u32).to_be_bytes()[1..]);
    }
    out.extend_from_slice(&[0; 16]);
    out.extend_from_slice(&data);
    out.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
    map(&mut out, 9);
    let number = |out: &mut Vec<u8>, key: &str, kind: u8, value: u32| {
        text(out, key);
        out.push(kind << 5 | 4);
        out.extend_from_slice(&value.to_be_bytes());
    };
    let short = |out: &mut Vec<u8>, key: &str, value: u16| {
        text(out, key);
        out.push(5 << 5 | 2);
        out.extend_from_slice(&value.to_be_bytes());
    };
    number(&mut out, "node_count", 6, count as u32);
    short(&mut out, "record_size", 24);
    short(&mut out, "ip_version", 4);
    short(&mut out, "binary_format_major_version", 2);
    short(&mut out, "binary_format_minor_version", 0);
    text(&mut out, "database_type");
    text(&mut out, "GeoLite2-City");
    text(&mut out, "languages");
    out.extend_from_slice(&[0, 4]); // an empty array
    text(&mut out, "build_epoch");
    out.extend_from_slice(&[4, 2, 0, 0, 0, 1]); // 64 bits, in four bytes
    text(&mut out, "description");
    map(&mut out, 0);
    out
}

fn names(out: &mut Vec<u8>, name: &str) {
    text(out, "names");
    map(out, 1);
    text(out, "en");
    text(out, name);
}

fn map(out: &mut Vec<u8>, members: u8) {
    out.push(7 << 5 | members);
}

fn text(out: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).expect("short");
    match length {
        0..=28 => out.push(2 << 5 | length),
        _ => out.extend_from_slice(&[2 << 5 | 29, length - 29]),
    }
    out.extend_from_slice(text.as_bytes());
}
