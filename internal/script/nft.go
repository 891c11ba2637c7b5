package script

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"berth"
	"berth/internal/plan"
)

var storeMark = regexp.MustCompile(`comment "store [^"]*"`)

// transaction writes one nft run; it takes effect as a whole or not at all.
func (w *writer) transaction(t plan.Transaction) {
	const table = "table inet berth"
	w.why = "the firewall, in one transaction"
	w.lines = append(w.lines, "nft -f - <<'EOF'")
	if t.Rebuild || t.Remove {
		// The first line makes the second succeed where there is no table.
		w.lines = append(w.lines, table, "delete "+table)
	}
	if t.Remove {
		w.why = "the firewall table goes, with all its elements"
	}
	if t.Rebuild {
		w.why = "the firewall table, made anew with its rules and elements"
		text := storeMark.ReplaceAllLiteralString(w.Ruleset, `comment "store `+w.Store+`"`)
		w.lines = append(w.lines, strings.TrimRight(text, "\n"))
	}
	w.elements("delete element", t.Drop, func(e plan.Element) string { return key(e.ElemKey) })
	w.elements("add element", t.Put, element)
	w.lines = append(w.lines, "EOF")
}

// maxElements bounds one nft command: netlink counts the bytes of its elements
// in 16 bits.
const maxElements = 500

// elements writes commands for elements, set by set.
func (w *writer) elements(command string, all []plan.Element, text func(plan.Element) string) {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b plan.Element) int { return strings.Compare(a.Set, b.Set) })
	for len(all) > 0 {
		n := 1
		for n < len(all) && n < maxElements && all[n].Set == all[0].Set {
			n++
		}
		open := command + " inet berth " + all[0].Set + " {"
		if n == 1 {
			w.lines = append(w.lines, open+" "+text(all[0])+" }")
		} else {
			w.lines = append(w.lines, open)
			for i, e := range all[:n] {
				line := "\t" + text(e)
				if i < n-1 {
					line += ","
				}
				w.lines = append(w.lines, line)
			}
			w.lines = append(w.lines, "}")
		}
		all = all[n:]
	}
}

// element writes an element; in nft's grammar the comment is the key's.
func element(e plan.Element) string {
	s := key(e.ElemKey)
	if c := comment(e.Comment); c != "" {
		s += ` comment "` + c + `"`
	}
	if e.Value != "" {
		s += " : " + e.Value
	}
	return s
}

// key writes a key with its interface names in quotes: bare, a link named tcp
// would be a word of nft's.
func key(k plan.ElemKey) string {
	parts := strings.Split(k.Key, " . ")
	for i, p := range parts {
		switch k.Set {
		case "bridges", "within", "closed", "deaf", "open", "refused_from", "refused_to":
			parts[i] = `"` + p + `"`
		case "uplinks", "hairpin4", "hairpin6":
			if i > 0 {
				parts[i] = `"` + p + `"`
			}
		}
	}
	return strings.Join(parts, " . ")
}

// comment cuts a comment to what nft takes (NFTNL_UDATA_COMMENT_MAXLEN), and
// drops what would end its quotes.
func comment(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '"' || r < ' ' {
			return -1
		}
		return r
	}, s)
	const most = 127
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

func (w *writer) flush(x plan.FlushConntrack) {
	w.why = "forget the connections that lead where nothing is any more; conntrack fails when it knows none"
	for _, a := range x.Addrs {
		for _, from := range []string{"-s", "-r"} { // it asked, or it was the one who answered
			w.conntrack(a, from, a.String())
		}
	}
	for _, p := range x.Ports {
		if p.Protocol != berth.UDP && !x.Cut {
			continue
		}
		args := []string{"-p", string(p.Protocol), "--dport", strconv.Itoa(int(p.HostPort)), "--dst-nat"}
		if !p.HostIP.IsUnspecified() {
			args = append(args, "-d", p.HostIP.String())
		}
		w.conntrack(p.HostIP, args...)
	}
}

func (w *writer) conntrack(a netip.Addr, args ...string) {
	f := "ipv4"
	if a.Is6() {
		f = "ipv6"
	}
	w.add("conntrack -D -f", f, strings.Join(args, " "), "2>/dev/null || true")
}
