//! Amounts as they are typed, and the account commands: deposit, withdraw, balance.

use data_encoding::HEXLOWER;
use rand::RngExt;
use red_envelope_proto::v1;
use serde_json::json;

use super::args::{Balance, Transfer};
use super::call::Client;
use super::words::{self, Style, Tone};
use super::{Failed, Told, shapes};
use crate::config::Environment;
use crate::domain::money::{Currencies, MoneyError, read_amount};

/// A new key of idempotency: 128 random bits, so that two commands never share one.
pub(super) fn new_request_id() -> String {
    let bytes: [u8; 16] = rand::rng().random();
    HEXLOWER.encode(&bytes)
}

/// `88.88 CNY`, typed as one word or two, taken apart.
pub(super) fn typed_amount(words: &[String], flag: &str) -> Result<(String, String), Failed> {
    let text = words.join(" ");
    let digits_end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+' || c == ','))
        .unwrap_or(text.len());
    let (digits, code) = text.split_at(digits_end);
    let code = code.trim();
    if digits.is_empty() || code.is_empty() || code.contains(' ') {
        return Err(Failed::usage(format!(
            "{flag} must be an amount and a currency, such as 88.88 CNY, not {text:?}"
        )));
    }
    Ok((digits.to_owned(), code.to_uppercase()))
}

/// An amount in the minor units of its currency.
pub(super) fn minor_units(
    currencies: &Currencies,
    digits: &str,
    code: &str,
    flag: &str,
) -> Result<i64, Failed> {
    let wrong = |e: MoneyError| Failed::usage(format!("{flag}: {e}"));
    let currency = currencies.find(code).map_err(wrong)?;
    read_amount(digits, currencies.decimals(currency)).map_err(wrong)
}

pub(super) async fn deposit(args: Transfer, environment: &Environment) -> Result<Told, Failed> {
    let (client, currencies, amount) = prepare(&args, environment).await?;
    let request = v1::DepositRequest {
        tenant: client.tenant.clone(),
        owner: args.owner.clone(),
        request_id: args.request_id.unwrap_or_else(new_request_id),
        amount: Some(amount.clone()),
        reference: args.reference,
    };
    let accounts = client.accounts();
    let request_id = request.request_id.clone();
    let reply = client
        .ask(request, |request| {
            let mut accounts = accounts.clone();
            async move { accounts.deposit(request).await }
        })
        .await
        .map_err(|failed| failed.repeatable_by(&request_id))?;
    let moved = format!(
        "{} for {}",
        words::money(&currencies, &amount),
        words::clean(&args.owner)
    );
    let done = Moved {
        verb: if reply.replayed {
            "Had deposited"
        } else {
            "Deposited"
        },
        moved,
        posting_id: reply.posting_id,
        balance: reply.balance.unwrap_or_default(),
        replayed: reply.replayed,
        request_id,
    };
    Ok(done.told(&currencies))
}

pub(super) async fn withdraw(args: Transfer, environment: &Environment) -> Result<Told, Failed> {
    let (client, currencies, amount) = prepare(&args, environment).await?;
    let request = v1::WithdrawRequest {
        tenant: client.tenant.clone(),
        owner: args.owner.clone(),
        request_id: args.request_id.unwrap_or_else(new_request_id),
        amount: Some(amount.clone()),
        reference: args.reference,
    };
    let accounts = client.accounts();
    let request_id = request.request_id.clone();
    let reply = client
        .ask(request, |request| {
            let mut accounts = accounts.clone();
            async move { accounts.withdraw(request).await }
        })
        .await
        .map_err(|failed| failed.repeatable_by(&request_id))
        .map_err(|failed| failed.in_currency(&currencies, &amount.currency_code, &args.owner))?;
    let moved = format!(
        "{} from {}",
        words::money(&currencies, &amount),
        words::clean(&args.owner)
    );
    let done = Moved {
        verb: if reply.replayed {
            "Had withdrawn"
        } else {
            "Withdrew"
        },
        moved,
        posting_id: reply.posting_id,
        balance: reply.balance.unwrap_or_default(),
        replayed: reply.replayed,
        request_id,
    };
    Ok(done.told(&currencies))
}

async fn prepare(
    args: &Transfer,
    environment: &Environment,
) -> Result<(Client, Currencies, v1::Money), Failed> {
    let (digits, code) = typed_amount(&args.amount, "the amount")?;
    let client = Client::connect(&args.at, environment).await?;
    let currencies = client.currencies([code.as_str()]).await?;
    let minor_units = minor_units(&currencies, &digits, &code, "the amount")?;
    let amount = v1::Money {
        currency_code: code,
        minor_units,
    };
    Ok((client, currencies, amount))
}

/// A transfer that stands in the books.
struct Moved {
    verb: &'static str,
    moved: String,
    posting_id: String,
    balance: v1::Balance,
    replayed: bool,
    request_id: String,
}

impl Moved {
    fn told(self, currencies: &Currencies) -> Told {
        let available = words::amount(currencies, self.balance.available.as_ref());
        let rows = [
            ("available", available),
            ("request id", self.request_id.clone()),
        ];
        let text = format!("{} {}.\n{}", self.verb, self.moved, words::pairs(&rows));
        let json = json!({
            "posting_id": self.posting_id,
            "request_id": self.request_id,
            "replayed": self.replayed,
            "balance": shapes::balance(currencies, &self.balance),
        });
        Told::ok(text, json)
    }
}

pub(super) async fn balance(
    args: Balance,
    environment: &Environment,
    style: Style,
) -> Result<Told, Failed> {
    let client = Client::connect(&args.at, environment).await?;
    let request = v1::GetBalanceRequest {
        tenant: client.tenant.clone(),
        owner: args.owner.clone(),
        currency_code: args.currency.to_uppercase(),
    };
    let accounts = client.accounts();
    let reply = client
        .ask(request, |request| {
            let mut accounts = accounts.clone();
            async move { accounts.get_balance(request).await }
        })
        .await?;
    let codes = reply.balances.iter().filter_map(|b| b.available.as_ref());
    let currencies = client
        .currencies(codes.map(|m| m.currency_code.as_str()))
        .await?;
    let balances = reply.balances.iter();
    let json = json!({
        "owner": args.owner,
        "balances": balances.map(|b| shapes::balance(&currencies, b)).collect::<Vec<_>>(),
    });
    Ok(Told::ok(
        balance_words(&currencies, &args.owner, &reply.balances, style),
        json,
    ))
}

fn balance_words(
    currencies: &Currencies,
    owner: &str,
    balances: &[v1::Balance],
    style: Style,
) -> String {
    let owner = words::clean(owner);
    if balances.is_empty() {
        return format!("{owner} has nothing.\n");
    }
    let rows: Vec<Vec<String>> = balances
        .iter()
        .map(|balance| {
            let of = |money: &Option<v1::Money>| words::amount(currencies, money.as_ref());
            vec![
                of(&balance.available),
                of(&balance.pending),
                of(&balance.held),
            ]
        })
        .collect();
    let table = words::table(&[">available", ">pending", ">in own envelopes"], &rows);
    format!("{}\n{table}", style.tone(Tone::Strong, &owner))
}

impl Failed {
    /// Tells what an account is short of as people write amounts.
    pub(super) fn in_currency(mut self, currencies: &Currencies, code: &str, owner: &str) -> Self {
        if let Some((available, needed)) = self.short {
            let of = |minor_units| {
                let currency_code = code.to_owned();
                words::money(
                    currencies,
                    &v1::Money {
                        currency_code,
                        minor_units,
                    },
                )
            };
            self.sentence = format!(
                "{} has {} available, and {} is needed. `red-envelope deposit` brings money in",
                words::clean(owner),
                of(available),
                of(needed)
            );
        }
        self
    }

    /// Adds the key under which the same request may be repeated.
    pub(super) fn repeatable_by(mut self, request_id: &str) -> Self {
        if self.exit == super::EXIT_UNAVAILABLE {
            self.sentence.push_str(&format!(
                " (with --request-id {request_id}, it takes effect only once)"
            ));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(words: &[&str]) -> Result<(String, String), String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        typed_amount(&words, "--total").map_err(|failed| failed.sentence)
    }

    #[test]
    fn an_amount_is_typed_as_one_word_or_two_in_any_case() {
        for words in [&["88.88", "CNY"][..], &["88.88CNY"], &["88.88 cny"]] {
            assert_eq!(typed(words), Ok(("88.88".to_owned(), "CNY".to_owned())));
        }
        for words in [
            &["88.88"][..],
            &["CNY"],
            &[],
            &["CNY", "88"],
            &["8 8", "CNY"],
        ] {
            let why = typed(words).unwrap_err();
            assert!(why.contains("such as 88.88 CNY"), "{why}");
        }
    }

    #[test]
    fn an_amount_that_its_currency_can_not_hold_is_rejected_before_it_is_sent() {
        let currencies = Currencies::default();
        let minor = |digits, code| {
            minor_units(&currencies, digits, code, "--total").map_err(|failed| failed.sentence)
        };
        assert_eq!(minor("88.88", "CNY"), Ok(8_888));
        assert_eq!(minor("500", "JPY"), Ok(500));
        for (digits, code) in [
            ("5.5", "JPY"),
            ("-1", "CNY"),
            ("1,000", "CNY"),
            ("1", "XYZ9"),
        ] {
            let why = minor(digits, code).unwrap_err();
            assert!(why.starts_with("--total: "), "{why}");
        }
    }

    #[test]
    fn a_balance_is_a_row_a_currency() {
        let of = |code: &str, minor_units| {
            Some(v1::Money {
                currency_code: code.to_owned(),
                minor_units,
            })
        };
        let balances = [
            v1::Balance {
                available: of("CNY", 11_112),
                pending: of("CNY", 888),
                held: of("CNY", 0),
            },
            v1::Balance {
                available: of("JPY", 5),
                pending: of("JPY", 0),
                held: of("JPY", 100_000),
            },
        ];
        let currencies = Currencies::default();
        assert_eq!(
            balance_words(&currencies, "alice", &balances, Style::default()),
            "alice\n   available   pending  in own envelopes\n  111.12 CNY  8.88 CNY          0.00 CNY\n       5 JPY     0 JPY        100000 JPY\n"
        );
        assert_eq!(
            balance_words(&currencies, "eve", &[], Style::default()),
            "eve has nothing.\n"
        );
    }

    #[test]
    fn what_an_account_is_short_of_is_told_in_its_currency() {
        let refused = Failed {
            short: Some((1_112, 8_888)),
            ..Failed::usage("1112 minor units are available, 8888 are needed")
        };
        assert_eq!(
            refused
                .in_currency(&Currencies::default(), "CNY", "alice")
                .sentence,
            "alice has 11.12 CNY available, and 88.88 CNY is needed. `red-envelope deposit` brings money in"
        );
    }

    #[test]
    fn a_request_id_is_new_each_time_and_fits_the_contract() {
        let id = new_request_id();
        assert_eq!(id.len(), 32);
        assert_ne!(id, new_request_id());
    }
}
