#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace cmt {

constexpr const char* kManifest = "manifest.json";

/// Throws the InputError for a manifest that says what it must not.
[[noreturn]] void damaged(const std::string& problem);

/// The value of manifest.json's text, by the rules of cmt/strict_json.py, so that Python and C++
/// read one manifest alike; throws InputError.
nlohmann::json parse_strictly(std::string_view text);

}  // namespace cmt
