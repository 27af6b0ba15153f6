#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace cmt {

/// A manifest without the reports, in the one way that Python's json.dumps writes it with sorted
/// names and no blanks. Throws InputError for what is no JSON object.
std::string signed_bytes(std::string_view manifest);

/// What vouches for a bundle, by the rules of bundle/signature.py.
struct Voucher {
  std::string signature;  ///< the content of manifest.json.sig
  /// What was signed, the content of manifest.signed.json. Early bundles have none: there it is
  /// what `signed_bytes` makes of the manifest.
  std::optional<std::string> content;
};

/// Throws InputError unless the signature was made of the voucher's content with the private part
/// of the Ed25519 key in the PEM file `key`, and that content says the same as the manifest.
/// `bundle` stands in the message.
void verify_signature(std::string_view manifest, const Voucher& voucher,
                      const std::filesystem::path& key, const std::filesystem::path& bundle);

}  // namespace cmt
