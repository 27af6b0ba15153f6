#include "command.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cmt/error.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <new>

namespace cmt::tools {
namespace {

constexpr const char* kTrust = "trust";
constexpr const char* kTrustUnsigned = "trust-unsigned";

Arguments parse(int argc, char** argv, const Usage& usage) {
  Arguments arguments;
  const auto contains = [](const std::vector<std::string>& names, const std::string& of_all,
                           const std::string& name) {
    return name == of_all || std::find(names.begin(), names.end(), name) != names.end();
  };
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("--", 0) != 0) {
      arguments.positional.push_back(word);
      continue;
    }
    const std::size_t equals = word.find('=');
    const std::string name = word.substr(2, equals - 2);
    if (contains(usage.flags, kTrustUnsigned, name) && equals == std::string::npos) {
      arguments.options[name] = "";
    } else if (contains(usage.valued, kTrust, name) && equals != std::string::npos) {
      arguments.options[name] = word.substr(equals + 1);
    } else if (contains(usage.valued, kTrust, name) && i + 1 < argc) {
      arguments.options[name] = argv[++i];
    } else {
      throw InputError("cannot use '" + word + "': see --help");
    }
  }
  if (arguments.positional.size() < usage.positional) {
    throw InputError("too few arguments: see --help");
  }
  return arguments;
}

int run_body(int argc, char** argv, const Usage& usage,
             const std::function<int(const Arguments&)>& body) {
  if (std::any_of(argv, argv + argc, [](const std::string& word) { return word == "--help"; })) {
    std::cout << usage.text << kTrustUsage;
    return 0;
  }
  return body(parse(argc, argv, usage));
}

/// What was printed lies in buffers still: only now it shows whether it can be written.
void finish_output() {
  errno = 0;
  std::cout.flush();
  const bool lost = std::fflush(stdout) != 0 || std::ferror(stdout) != 0 || !std::cout.good();
  if (!lost) return;
  const std::string reason = errno == 0 ? "its end is gone" : std::strerror(errno);
  throw MachineError("cannot write the output (" + reason + "): free space where it goes");
}

}  // namespace

std::string Arguments::text(const std::string& name, const std::string& otherwise) const {
  const auto found = options.find(name);
  return found == options.end() ? otherwise : found->second;
}

double Arguments::number(const std::string& name, double otherwise, double low, double high) const {
  if (!has(name)) return otherwise;
  const std::string& given = options.at(name);
  char* end = nullptr;
  const double value = std::strtod(given.c_str(), &end);
  if (given.empty() || *end != '\0' || !(value >= low && value <= high)) {
    throw InputError("--" + name + " '" + given + "' is no number from " + std::to_string(low) +
                     " to " + std::to_string(high));
  }
  return value;
}

int Arguments::count(const std::string& name, int otherwise, int low, int high) const {
  const double value = number(name, otherwise, low, high);
  if (value != std::floor(value)) throw InputError("--" + name + " must be a whole number");
  return static_cast<int>(value);
}

Trust trust(const Arguments& arguments) {
  // An empty variable of a shell's must not stand for no key at all.
  if (arguments.has(kTrust) && arguments.text(kTrust, "").empty()) {
    throw InputError("--trust needs the file of a public key");
  }
  return {arguments.text(kTrust, ""), arguments.has(kTrustUnsigned)};
}

int threads(const Arguments& arguments) { return arguments.count("threads", 0, 1, kMostThreads); }

std::string device(const Arguments& arguments) {
  std::string name = arguments.text("device", "");
  if (arguments.has("device") && name.empty()) throw InputError("--device is empty: name one");
  return name;
}

std::string to_text(const nlohmann::ordered_json& value, int indent) {
  return value.dump(indent, ' ', true, nlohmann::json::error_handler_t::replace);
}

int run(int argc, char** argv, const Usage& usage,
        const std::function<int(const Arguments&)>& body) {
  const std::string name =
      printable(std::filesystem::path(argc > 0 ? argv[0] : "cmt").filename().string());
  const auto fail = [&](const std::string& message, int status) {
    std::cerr << name << ": " << message << '\n';
    return status;
  };
  try {
    const int status = run_body(argc, argv, usage, body);
    finish_output();
    return status;
  } catch (const InputError& error) {
    return fail(error.what(), 2);
  } catch (const std::bad_alloc&) {
    return fail("out of memory: free some", 3);
  } catch (const std::exception& error) {
    return fail(printable(error.what()), 3);
  }
}

}  // namespace cmt::tools
