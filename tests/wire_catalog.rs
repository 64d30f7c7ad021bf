//! The catalog on the wire: a client predicts with the catalog that it fetches from the server.

use slotcast::catalog_file::default_catalog;
use slotcast::wire::catalog::decode_catalog;
use slotcast::wire::reply;

#[test]
fn a_catalog_that_is_sent_and_received_is_unchanged() {
    let sent = default_catalog();
    let received = decode_catalog(&reply::catalog(&sent, "1")).expect("a valid catalog");
    assert_eq!(received.items(), sent.items());
    assert_eq!(received.recipes(), sent.recipes());
    assert!(received.layouts().eq(sent.layouts()));
}

#[test]
fn a_recipe_with_an_item_that_is_not_in_the_catalog_is_an_error() {
    let mut reply = reply::catalog(&default_catalog(), "1");
    reply.recipes[0].inputs[0].item_code = 999;
    assert_eq!(decode_catalog(&reply).unwrap_err(), ["recipe \"oak_planks\": unknown item \"code 999\""]);
}
