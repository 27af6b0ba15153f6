#pragma once

#include <cmt/error.hpp>
#include <exception>
#include <string>

namespace cmt {

/// Throws the Error for another exception that was met while `name` was used; `advice` is what to
/// do about it.
[[noreturn]] void rethrow_as_error(const std::string& name, const std::exception& error,
                                   const char* advice);

/// Runs what calls a runtime or the system, which throw kinds of their own: what comes out is an
/// Error that names `name`.
template <typename Call>
auto translated(const std::string& name, const Call& call,
                const char* advice = "export the bundle again") -> decltype(call()) {
  try {
    return call();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    rethrow_as_error(name, error, advice);
  }
}

}  // namespace cmt
