//! What a test does where something is missing that it cannot do without.

/// Says that a test is left out for want of `what`.
///
/// # Panics
/// Where `BT_REQUIRE`, names with commas between them, has `what`: there it has to be there.
pub fn skip(what: &str, why: &str) {
    let required = std::env::var("BT_REQUIRE").unwrap_or_default();
    let has_to_be = required.split(',').any(|name| name.trim() == what);
    assert!(!has_to_be, "BT_REQUIRE has `{what}`, but: {why}");
    println!("skipped: {why}");
}
