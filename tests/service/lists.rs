//! ListInventories and its page tokens.

use crate::common::{TestServer, at_once, invalid, told};
use slotcast::wire::v1;
use tonic::Status;

/// Inventories `bag/1` to `bag/5` and `box/1` to `box/5`; ann owns the odd ones, bob the even ones.
async fn world() -> TestServer {
    let server = TestServer::start(at_once()).await;
    for kind in ["bag", "box"] {
        for number in 1..=5 {
            let owner = if number % 2 == 1 { "ann" } else { "bob" };
            let create = v1::CreateInventory {
                inventory_id: format!("{kind}/{number}"),
                owner: owner.into(),
                layout: "chest".into(),
                stacks: vec![],
            };
            server.mutate(v1::operation::Operation::Create(create)).await.unwrap();
        }
    }
    server
}

fn query(owner: &str, prefix: &str, page_size: u32, page_token: &str) -> v1::ListInventoriesRequest {
    v1::ListInventoriesRequest { owner: owner.into(), prefix: prefix.into(), page_size, page_token: page_token.into() }
}

/// Returns the ids of a page and the token of the next page.
async fn page(server: &TestServer, query: v1::ListInventoriesRequest) -> Result<(Vec<String>, String), Status> {
    let page = server.client.rpc().list_inventories(query).await?.into_inner();
    let ids = page.inventories.into_iter().map(|summary| summary.version.unwrap().inventory_id).collect();
    Ok((ids, page.next_page_token))
}

#[tokio::test]
async fn pages_of_any_size_together_contain_every_inventory_once() {
    let server = world().await;
    for (owner, prefix, expected) in
        [("", "", 10), ("ann", "", 6), ("bob", "box/", 2), ("", "bag/", 5), ("nobody", "", 0)]
    {
        let (mut listed, mut token, mut page_size) = (Vec::new(), String::new(), 1);
        loop {
            let (ids, next) = page(&server, query(owner, prefix, page_size, &token)).await.unwrap();
            listed.extend(ids);
            token = next;
            page_size = page_size % 3 + 1;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(listed.len(), expected, "{owner:?} {prefix:?}: {listed:?}");
        assert!(listed.is_sorted() && listed.iter().all(|id| id.starts_with(prefix)));
        listed.dedup();
        assert_eq!(listed.len(), expected);
    }
}

#[tokio::test]
async fn a_page_token_of_another_query_or_an_invented_one_is_invalid() {
    let server = world().await;
    let token = |owner, prefix| {
        let page = page(&server, query(owner, prefix, 2, ""));
        async { page.await.unwrap().1 }
    };
    let (all, of_ann, bags) = (token("", "").await, token("ann", "").await, token("", "bag/").await);
    assert!([&all, &of_ann, &bags].iter().all(|token| !token.is_empty()));
    let changed = format!("{}A", &bags[..bags.len() - 1]);
    for (owner, prefix, token) in [
        ("ann", "", &all),
        ("", "bag/", &all),
        ("", "", &of_ann),
        ("bob", "", &of_ann),
        ("", "box/", &bags),
        ("", "bag", &bags),
        ("", "", &bags),
        ("ann", "bag/", &bags),
        // The id of an inventory was a token once.
        ("", "", &"bag/2".to_owned()),
        ("", "bag/", &changed),
        ("", "bag/", &bags[1..].to_owned()),
        ("", "", &"AAAA".to_owned()),
        ("", "", &"no token".to_owned()),
    ] {
        let status = page(&server, query(owner, prefix, 2, token)).await.unwrap_err();
        assert_eq!(told(&status), invalid("INVALID_ARGUMENT", "page_token"), "{owner:?} {prefix:?} {token:?}");
    }
    assert_eq!(
        page(&server, query("", "bag/", 1, &bags)).await.unwrap().0,
        ["bag/3"],
        "of its own query it is accepted"
    );
}

#[tokio::test]
async fn a_page_token_is_accepted_after_a_restart() {
    let server = world().await;
    let (_, token) = page(&server, query("ann", "", 4, "")).await.unwrap();
    let other = world().await;
    assert_eq!(page(&other, query("ann", "", 4, &token)).await.unwrap().0, ["box/3", "box/5"]);
}
