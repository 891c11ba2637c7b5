package berth

import (
	"fmt"
	"strings"
)

// maxName is the longest name, in bytes: it has to fit in the comment of a
// firewall element.
const maxName = 128

// ValidName returns nil if s can be the name of an object of a kind ("network",
// "sandbox"), and an error that matches [ErrInvalid] if not. Names are letters,
// digits, "_", "." and "-", and start with a letter or digit; it is Docker's
// rule. They are safe in a path, a shell and a ruleset.
func ValidName(kind, s string) error {
	why := ""
	switch bad := strings.IndexFunc(s, func(r rune) bool { return !isNameRune(r) }); {
	case s == "":
		why = "a name has at least one letter or digit"
	case len(s) > maxName:
		why = fmt.Sprintf("%d bytes long; a name has at most %d", len(s), maxName)
	case bad >= 0:
		r := []rune(s[bad:])[0]
		why = fmt.Sprintf("%q; a name has only letters, digits, \"_\", \".\" and \"-\"", r)
	case !isAlnum(rune(s[0])):
		why = "a name starts with a letter or digit"
	default:
		return nil
	}
	return fmt.Errorf("%w %s name %s: %s", ErrInvalid, kind, cutQuote(s), why)
}

func isAlnum(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

func isNameRune(r rune) bool { return isAlnum(r) || r == '_' || r == '.' || r == '-' }

// cutQuote quotes what somebody typed, cut so that an error stays one line.
func cutQuote(s string) string {
	const most = 40
	if len(s) <= most {
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprintf("%q…", strings.ToValidUTF8(s[:most], ""))
}
