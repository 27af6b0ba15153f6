#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace cmt {

/// What the signature of a bundle covers: its manifest without the reports, in the one way that
/// Python's json.dumps writes it with sorted names and no blanks.
std::string signed_bytes(std::string_view manifest);

/// Throws InputError unless `signature`, the content of manifest.json.sig, was made of this
/// manifest with the private part of the Ed25519 key in the PEM file `key`. `bundle` stands in the
/// message.
void verify_signature(std::string_view manifest, std::string_view signature,
                      const std::filesystem::path& key, const std::filesystem::path& bundle);

}  // namespace cmt
