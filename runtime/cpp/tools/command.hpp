#pragma once

#include <cmt/classifier.hpp>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "../src/text.hpp"

namespace cmt::tools {

/// A command line, taken apart.
struct Arguments {
  std::vector<std::string> positional;
  std::map<std::string, std::string> options;  ///< by name, without the dashes

  bool has(const std::string& name) const { return options.count(name) != 0; }
  std::string text(const std::string& name, const std::string& otherwise) const;
  /// Throws InputError unless the option is a number from `low` to `high`.
  double number(const std::string& name, double otherwise, double low, double high) const;
  int count(const std::string& name, int otherwise, int low, int high) const;
};

/// What every tool says of the options that say whose engines may run.
constexpr const char* kTrustUsage =
    "  --trust KEY      public key (PEM) that the bundle must be signed with; its engines may run\n"
    "  --trust-unsigned run engines of a bundle without a signature: of one that was made here\n";

/// Those options; every tool has them.
Trust trust(const Arguments& arguments);

/// The number of --threads; 0 without, for all.
int threads(const Arguments& arguments);

/// The device of --device; empty without. Throws InputError for an empty name.
std::string device(const Arguments& arguments);

/// What a tool takes beside --help and those for trust: options with a value and without one.
struct Usage {
  std::string text;
  std::vector<std::string> valued;
  std::vector<std::string> flags;
  std::size_t positional;  ///< at least so many
};

/// Parses, runs `body` and returns the exit status: its own; 2 for an InputError, which becomes
/// one line on standard error; 3 where the machine failed or the output was lost.
int run(int argc, char** argv, const Usage& usage,
        const std::function<int(const Arguments&)>& body);

/// JSON in ASCII, so that nothing in a name reaches a terminal as it is; what of a path is no UTF-8
/// becomes a replacement character. `indent` -1 makes one line.
std::string to_text(const nlohmann::ordered_json& value, int indent);

}  // namespace cmt::tools
