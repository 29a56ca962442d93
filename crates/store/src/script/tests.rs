//! Numbers as arguments, and answers of any kind.

use super::*;

#[test]
fn numbers_are_passed_as_decimal_digits() {
    for value in [0, 7, 10, 1_234_567_890, u64::MAX] {
        let mut digits = Vec::new();
        number(value, &mut |bytes| digits.extend_from_slice(bytes));
        assert_eq!(digits, value.to_string().into_bytes());
    }
}

/// A store may answer anything.
#[test]
fn no_answer_of_a_store_panics() {
    let mut state = 1_u64;
    let mut random = move |below: u8| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0] % below
    };
    let words: [&[u8]; 18] = [
        b"lost",
        b"late",
        b"revised",
        b"none",
        b"gone",
        b"scope",
        b"holder",
        b"full",
        b"found",
        b"stored",
        b"taken",
        b"overdue",
        b"done",
        b"beaten",
        b"names",
        b"revocations",
        b"ring",
        b"good",
    ];
    let mut read = 0;
    for _ in 0..200_000 {
        let mut parts = vec![Value::Bytes(words[usize::from(random(18))].to_vec())];
        for _ in 0..random(7) {
            parts.push(match random(6) {
                0 => Value::Integer(i64::from(random(255)) - 100),
                1 => Value::Bytes(random(255).to_string().into()),
                2 => Value::Bytes((0..random(40)).map(|_| random(255)).collect()),
                3 => Value::List(vec![Value::Other]),
                4 => Value::Bytes(b"123:sealed".to_vec()),
                _ => Value::Other,
            });
        }
        read += usize::from(Answer::read(&Value::List(parts)).is_ok());
    }
    assert!(read > 1_000, "{read}");
    assert!(Answer::read(&Value::Other).is_err());
    assert!(Answer::read(&Value::List(Vec::new())).is_err());
}
