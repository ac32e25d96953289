use super::*;

/// Builds BTF by hand, so that the reader meets something it did not write.
struct Builder {
    types: Vec<u32>,
    strings: Vec<u8>,
}

impl Builder {
    fn new() -> Self {
        Self {
            types: Vec::new(),
            strings: vec![0],
        }
    }

    fn string(&mut self, text: &str) -> u32 {
        let at = self.strings.len() as u32;
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        at
    }

    fn push(&mut self, name: &str, kind: u32, len: u32, flag: bool, size: u32, rest: &[u32]) {
        let name = if name.is_empty() {
            0
        } else {
            self.string(name)
        };
        self.types
            .extend([name, kind << 24 | len | u32::from(flag) << 31, size]);
        self.types.extend(rest);
    }

    fn build(&self) -> Vec<u8> {
        let types: Vec<u8> = self
            .types
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        for word in [24, 0, types.len(), types.len(), self.strings.len()] {
            data.extend((word as u32).to_ne_bytes());
        }
        data.extend(types);
        data.extend(&self.strings);
        data
    }
}

fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    b.push("int", kind::INT, 0, false, 4, &[32]); // 1
    let [x, y, inner, outer] = ["x", "y", "inner", "outer_end"].map(|name| b.string(name));
    // 2: anonymous union { int x; int y:3 at bit 5 }
    b.push("", kind::UNION, 2, true, 4, &[x, 1, 0, y, 1, 3 << 24 | 5]);
    // 3: struct inner { int @0; anonymous union @32 }
    b.push("inner_s", kind::STRUCT, 1, false, 8, &[0, 2, 32]);
    // 4: struct outer { int outer_end @128; inner_s inner @64 }
    b.push(
        "outer",
        kind::STRUCT,
        2,
        false,
        24,
        &[outer, 1, 128, inner, 3, 64],
    );
    let [data, sk, reason] = ["__data", "sk", "reason__nullable"].map(|name| b.string(name));
    b.push("", kind::FUNC_PROTO, 3, false, 0, &[0, 1, 0, 1, 0, 1]); // 5
    b.push("", kind::PTR, 0, false, 5, &[]); // 6
    b.push("btf_trace_event", kind::TYPEDEF, 0, false, 6, &[]); // 7
    b.push(
        "",
        kind::FUNC_PROTO,
        3,
        false,
        0,
        &[data, 1, sk, 1, reason, 1],
    ); // 8
    b.push("__traceiter_event", kind::FUNC, 0, false, 8, &[]); // 9
    let [a, c] = ["REASON_A", "REASON_C"].map(|name| b.string(name));
    b.push("reasons", kind::ENUM, 2, false, 4, &[a, 0, c, 7]); // 10
    b.build()
}

#[test]
fn finds_fields_through_anonymous_members() {
    let btf = Btf::parse(sample(), None).unwrap();
    assert_eq!(
        btf.field("outer.inner.x"),
        Some(Field {
            bit_offset: 96,
            bits: None,
            size: 4
        })
    );
    assert_eq!(
        btf.field("outer.inner.y"),
        Some(Field {
            bit_offset: 101,
            bits: Some(3),
            size: 4
        })
    );
    assert_eq!(btf.field("outer.outer_end").unwrap().bit_offset, 128);
    assert_eq!(btf.field("outer.none"), None);
    assert_eq!(btf.field("none.x"), None);
}

#[test]
fn names_tracepoint_arguments_and_enumerators() {
    let btf = Btf::parse(sample(), None).unwrap();
    assert_eq!(btf.tracepoint_args("event").unwrap(), ["sk", "reason"]);
    assert_eq!(btf.tracepoint_args("other"), None);
    assert!(btf.has_func("__traceiter_event"));
    assert_eq!(
        btf.enum_variants("reasons").unwrap(),
        [("REASON_A".to_owned(), 0), ("REASON_C".to_owned(), 7)]
    );
}

#[test]
fn cut_off_or_scrambled_input_is_an_error_or_harmless() {
    let good = sample();
    for len in 0..good.len() {
        assert!(
            Btf::parse(good[..len].to_vec(), None).is_err(),
            "{len} bytes"
        );
    }
    for at in 0..good.len() {
        for value in [0, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            if let Ok(btf) = Btf::parse(bad, None) {
                let _ = btf.field("outer.inner.y");
                let _ = btf.tracepoint_args("event");
                let _ = btf.enum_variants("reasons");
            }
        }
    }
}
