#include "schema.hpp"

#include <algorithm>
#include <set>
#include <stdexcept>

#include "text.hpp"

namespace cmt {
namespace {

using Json = Schema::Json;
using Problem = Schema::Problem;

std::string quoted(const Json& value) {
  constexpr std::size_t kLongest = 60;
  const std::string text = value.dump();
  return text.size() > kLongest ? text.substr(0, kLongest) + "..." : text;
}

// --- keywords that hold a value against their argument alone ------------------------------------

bool has_type(const Json& name, const Json& value) {
  return (name == "object" && value.is_object()) || (name == "array" && value.is_array()) ||
         (name == "string" && value.is_string()) || (name == "boolean" && value.is_boolean()) ||
         (name == "integer" && value.is_number_integer()) ||
         (name == "number" && value.is_number()) || (name == "null" && value.is_null());
}

bool is_of_another_type(const Json& value, const Json& type) {
  if (!type.is_array()) return !has_type(type, value);
  return std::none_of(type.begin(), type.end(),
                      [&](const Json& one) { return has_type(one, value); });
}
bool differs(const Json& value, const Json& wanted) { return value != wanted; }
bool is_not_among(const Json& value, const Json& known) {
  return std::find(known.begin(), known.end(), value) == known.end();
}
bool is_below(const Json& value, const Json& limit) { return value.is_number() && value < limit; }
bool is_not_above(const Json& value, const Json& limit) {
  return value.is_number() && value <= limit;
}
bool is_above(const Json& value, const Json& limit) { return value.is_number() && value > limit; }
bool is_shorter(const Json& value, const Json& limit) {
  return value.is_string() && to_wide(value.get<std::string>()).size() < limit;
}
bool is_longer(const Json& value, const Json& limit) {
  return value.is_string() && to_wide(value.get<std::string>()).size() > limit;
}
bool has_fewer_items(const Json& value, const Json& limit) {
  return value.is_array() && value.size() < limit;
}
bool has_more_items(const Json& value, const Json& limit) {
  return value.is_array() && value.size() > limit;
}
bool has_fewer_names(const Json& value, const Json& limit) {
  return value.is_object() && value.size() < limit;
}
bool has_more_names(const Json& value, const Json& limit) {
  return value.is_object() && value.size() > limit;
}

struct Comparison {
  bool (*broken)(const Json& value, const Json& argument);
  const char* words;  ///< between the value and the argument
};

const std::map<std::string, Comparison> kComparisons{
    {"type", {is_of_another_type, "is not of type"}},
    {"const", {differs, "is not"}},
    {"enum", {is_not_among, "is not one of"}},
    {"minimum", {is_below, "is below"}},
    {"exclusiveMinimum", {is_not_above, "is not above"}},
    {"maximum", {is_above, "is above"}},
    {"minLength", {is_shorter, "has fewer characters than"}},
    {"maxLength", {is_longer, "has more characters than"}},
    {"minItems", {has_fewer_items, "has fewer items than"}},
    {"maxItems", {has_more_items, "has more items than"}},
    {"minProperties", {has_fewer_names, "has fewer names than"}},
    {"maxProperties", {has_more_names, "has more names than"}},
};

// --- keywords that apply schemas, or look at more than the value
// ----------------------------------

/// A keyword at work: its argument, the schema that it is in, and what stands at a place.
struct Case {
  const Schema& root;
  const Json& argument;
  const Json& schema;
  const Json& value;
  const std::string& place;

  bool is_valid(const Json& against) const {
    return !root.check(against, value, place).has_value();
  }
  Problem fail(const std::string& words) const { return place + ": " + words; }
};

Problem check_reference(const Case& c) {
  return c.root.check(c.root.referred(c.argument.get<std::string>()), c.value, c.place);
}

Problem check_pattern(const Case& c) {
  if (!c.value.is_string()) return {};
  const std::wregex& pattern = c.root.pattern(c.argument.get<std::string>());
  if (std::regex_search(to_wide(c.value.get<std::string>()), pattern)) return {};
  return c.fail(quoted(c.value) + " is not like " + c.argument.dump());
}

Problem check_required(const Case& c) {
  for (const Json& name : c.argument) {
    if (c.value.is_object() && !c.value.contains(name.get<std::string>())) {
      return c.fail(name.dump() + " is missing");
    }
  }
  return {};
}

Problem check_dependent_required(const Case& c) {
  for (const auto& [name, needed] : c.argument.items()) {
    if (!c.value.is_object() || !c.value.contains(name)) continue;
    if (auto found = check_required({c.root, needed, c.schema, c.value, c.place})) return found;
  }
  return {};
}

Problem check_properties(const Case& c) {
  for (const auto& [name, schema] : c.argument.items()) {
    if (!c.value.is_object() || !c.value.contains(name)) continue;
    if (auto found = c.root.check(schema, c.value[name], c.place + "." + name)) return found;
  }
  return {};
}

Problem check_other_properties(const Case& c) {
  if (!c.value.is_object()) return {};
  const Json known = c.schema.value("properties", Json::object());
  for (const auto& [name, item] : c.value.items()) {
    if (known.contains(name)) continue;
    if (auto found = c.root.check(c.argument, item, c.place + "." + name)) return found;
  }
  return {};
}

Problem check_property_names(const Case& c) {
  if (!c.value.is_object()) return {};
  for (const auto& [name, item] : c.value.items()) {
    if (auto found = c.root.check(c.argument, name, c.place)) return found;
  }
  return {};
}

Problem check_item(const Case& c, const Json& schema, std::size_t index) {
  return c.root.check(schema, c.value[index], c.place + "[" + std::to_string(index) + "]");
}

Problem check_first_items(const Case& c) {
  const std::size_t count = c.value.is_array() ? std::min(c.argument.size(), c.value.size()) : 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (auto found = check_item(c, c.argument[i], i)) return found;
  }
  return {};
}

Problem check_items(const Case& c) {
  const std::size_t begin = c.schema.value("prefixItems", Json::array()).size();
  for (std::size_t i = begin; c.value.is_array() && i < c.value.size(); ++i) {
    if (auto found = check_item(c, c.argument, i)) return found;
  }
  return {};
}

Problem check_all(const Case& c) {
  for (const Json& schema : c.argument) {
    if (auto found = c.root.check(schema, c.value, c.place)) return found;
  }
  return {};
}

Problem check_one(const Case& c) {
  const auto valid = std::count_if(c.argument.begin(), c.argument.end(),
                                   [&](const Json& schema) { return c.is_valid(schema); });
  if (valid == 1) return {};
  return c.fail(quoted(c.value) + " is of " + std::to_string(valid) + " of the known kinds");
}

Problem check_not(const Case& c) {
  if (!c.is_valid(c.argument)) return {};
  return c.fail(quoted(c.value) + " is not allowed");
}

Problem check_if(const Case& c) {
  if (!c.is_valid(c.argument)) return {};
  return c.root.check(c.schema.at("then"), c.value, c.place);
}

/// Where schemas are in a keyword's argument.
enum class Holds { nothing, one, list, by_name };

struct Application {
  Problem (*check)(const Case& c);  ///< none where it only describes, or another looks for it
  Holds holds;
};

const std::map<std::string, Application> kApplications{
    {"$schema", {nullptr, Holds::nothing}},
    {"$id", {nullptr, Holds::nothing}},
    {"title", {nullptr, Holds::nothing}},
    {"description", {nullptr, Holds::nothing}},
    {"$defs", {nullptr, Holds::by_name}},
    {"$ref", {check_reference, Holds::nothing}},
    {"pattern", {check_pattern, Holds::nothing}},
    {"required", {check_required, Holds::nothing}},
    {"dependentRequired", {check_dependent_required, Holds::nothing}},
    {"properties", {check_properties, Holds::by_name}},
    {"additionalProperties", {check_other_properties, Holds::one}},
    {"propertyNames", {check_property_names, Holds::one}},
    {"prefixItems", {check_first_items, Holds::list}},
    {"items", {check_items, Holds::one}},
    {"allOf", {check_all, Holds::list}},
    {"oneOf", {check_one, Holds::list}},
    {"not", {check_not, Holds::one}},
    {"if", {check_if, Holds::one}},
    {"then", {nullptr, Holds::one}},
};

}  // namespace

Schema::Schema(std::string_view text) : root_(Json::parse(text)) { survey(root_); }

void Schema::survey(const Json& schema) {
  if (!schema.is_object()) return;  // true or false
  for (const auto& [name, argument] : schema.items()) {
    if (kComparisons.count(name) != 0) continue;
    const auto found = kApplications.find(name);
    if (found == kApplications.end()) throw std::logic_error("unknown in a schema: " + name);
    if (name == "pattern") {
      const auto words = argument.get<std::string>();
      patterns_.emplace(words, std::wregex(to_wide(words)));
    }
    const Holds holds = found->second.holds;
    if (holds == Holds::one) survey(argument);
    if (holds != Holds::list && holds != Holds::by_name) continue;
    for (const Json& part : argument) survey(part);
  }
}

Problem Schema::check(const Json& schema, const Json& value, const std::string& place) const {
  if (schema == false) return place + ": it is not known here";
  if (schema == true) return {};
  for (const auto& [name, argument] : schema.items()) {
    const auto comparison = kComparisons.find(name);
    if (comparison != kComparisons.end()) {
      const auto& [broken, words] = comparison->second;
      if (!broken(value, argument)) continue;
      return place + ": " + quoted(value) + " " + words + " " + argument.dump();
    }
    const auto apply = kApplications.at(name).check;
    if (apply == nullptr) continue;
    if (auto found = apply({*this, argument, schema, value, place})) return found;
  }
  return {};
}

const Json& Schema::referred(const std::string& reference) const {
  return root_.at(Json::json_pointer(reference.substr(1)));
}

}  // namespace cmt
