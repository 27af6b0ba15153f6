#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <string>
#include <string_view>

namespace cmt {

/// A JSON Schema (2020-12), with the keywords that manifest.schema.json uses.
///
/// As for Python's reader, 1.0 is no integer. Patterns are searched for in characters, not bytes.
class Schema {
 public:
  using Json = nlohmann::json;
  using Problem = std::optional<std::string>;

  /// Throws std::logic_error for a keyword that this class does not know: skipped, it would let
  /// pass what the schema refuses.
  explicit Schema(std::string_view text);

  /// What breaks the schema first, such as "$.input.dtype: ..."; nothing where the value is valid.
  Problem problem(const Json& value) const { return check(root_, value, "$"); }

  /// The same for what the schema defines under a name, such as "file".
  Problem problem_of(const std::string& definition, const Json& value) const {
    return check(referred("#/$defs/" + definition), value, "$");
  }

  /// The same for a part of the schema and what stands at `place`.
  Problem check(const Json& schema, const Json& value, const std::string& place) const;

  /// What "$ref" names, "#/$defs/..." alone.
  const Json& referred(const std::string& reference) const;
  const std::wregex& pattern(const std::string& text) const { return patterns_.at(text); }

 private:
  void survey(const Json& schema);

  Json root_;
  std::map<std::string, std::wregex> patterns_;
};

}  // namespace cmt
