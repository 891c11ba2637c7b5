// Package script writes steps as the commands a person would type: ip, bridge,
// sysctl, nft and conntrack, each with a line that says why. It explains and
// previews a change; it never makes one.
//
// The text is a shell script for iproute2 6.1, nftables 1.0.6 and
// conntrack-tools 1.4.7 or later, which runs under "set -e" too. It may run
// twice, as the steps may: what is already so, or already gone, is passed over
// with the tool's own message. Only an nft transaction insists that what it
// deletes is there, since "destroy" is not in nftables 1.0.6.
package script

import (
	"fmt"
	"reflect"
	"strings"

	"berth/internal/plan"
)

// A Script knows what steps leave to their context.
type Script struct {
	// Ruleset is the text of table inet berth, for a Transaction that rebuilds
	// it.
	Ruleset string
	// Store is the id that the table carries: in Ruleset it takes the place of
	// whatever follows in a comment "store …".
	Store string
	// Name tells how to address a sandbox: by its name in /run/netns, or by a
	// path. It is not asked about [plan.Host].
	Name func(plan.Place) string
}

// Render returns the script for steps, empty if there are none. Steps are set
// apart by empty lines.
func (s Script) Render(steps []plan.Step) string {
	var b strings.Builder
	for i, step := range steps {
		if i > 0 && !follows(steps[i-1], step) {
			b.WriteString("\n")
		}
		w := writer{Script: s}
		w.step(step)
		if i == 0 || !follows(steps[i-1], step) {
			fmt.Fprintf(&b, "# %s\n", w.why)
		}
		for _, l := range w.lines {
			b.WriteString(l + "\n")
		}
	}
	return b.String()
}

// follows reports whether b does what a does once more, so that one comment
// serves both.
func follows(a, b plan.Step) bool {
	switch b := b.(type) {
	case plan.PutAddr:
		before, ok := a.(plan.PutAddr)
		return ok && before.Bare == b.Bare
	case plan.DropAddr, plan.PutRule, plan.DropRule, plan.UpLink, plan.DropRoute:
		return reflect.TypeOf(a) == reflect.TypeOf(b)
	case plan.SetSysctl:
		before, ok := a.(plan.SetSysctl)
		return ok && whySysctl(before) == whySysctl(b)
	case plan.PutRoute:
		before, ok := a.(plan.PutRoute)
		return ok && whyRoute(before) == whyRoute(b)
	}
	return false
}

// A writer writes one step.
type writer struct {
	Script
	why   string
	lines []string
}

func (w *writer) step(step plan.Step) {
	switch x := step.(type) {
	case plan.Transaction:
		w.transaction(x)
	case plan.PutLink:
		w.putLink(x)
	case plan.UpLink:
		w.why = "up, now that it is complete"
		w.ip(x.Key.Place, "link set dev", x.Key.Name, "up")
	case plan.DropLinks:
		w.why = "the links go, each with its other end"
		for _, name := range x.Names {
			w.ipOr(x.Place, "link del dev", name)
		}
	case plan.TuneLink:
		w.why = "what others made, as is asked"
		w.tune(x)
	case plan.PutShape:
		w.putShape(x)
	case plan.PutAddr:
		w.why = "addresses; IPv6 without the second of duplicate address detection"
		w.putAddr(x)
	case plan.DropAddr:
		w.why = "the addresses go"
		w.ipOr(x.Key.Link.Place, "addr del", x.Key.Prefix.String(), "dev", x.Key.Link.Name)
	case plan.PutRoute:
		w.why = whyRoute(x)
		if x.Route.Local && x.Key.Dst.Addr().Is6() {
			// IPv6's replace does not look at the link: it would take the place of
			// another network's route to ::1.
			w.ipOr(x.Key.Place, "-6 route append", route(x.Key, x.Route)...)
			break
		}
		w.ip(x.Key.Place, family(x.Key.Dst.Addr())+"route replace", route(x.Key, x.Route)...)
	case plan.DropRoute:
		w.why = "the routes go"
		w.ipOr(x.Key.Place, family(x.Key.Dst.Addr())+"route del", route(x.Key, x.Route)...)
	case plan.PutRule:
		w.why = "an answer leaves by the interface that was asked"
		w.ipOr(x.Key.Place, family(x.Key.From.Addr())+"rule add", rule(x.Key)...)
	case plan.DropRule:
		w.why = "the rules of source addresses go"
		w.ipOr(x.Key.Place, family(x.Key.From.Addr())+"rule del", rule(x.Key)...)
	case plan.SetSysctl:
		w.why = whySysctl(x)
		w.add(w.inside(x.Key.Place), "sysctl -qw", quote(x.Key.Path+"="+x.Value))
	case plan.PutNetns:
		w.why = "the network namespace"
		w.ipOr(plan.Host, "netns add", x.Name)
	case plan.DropNetns:
		w.why = "the network namespace goes"
		w.ipOr(plan.Host, "netns del", x.Name)
	case plan.FlushConntrack:
		w.flush(x)
	default:
		panic(fmt.Sprintf("script: no command for a step of type %T", step))
	}
}

// add adds a line of words; empty ones are left out.
func (w *writer) add(words ...string) {
	kept := words[:0]
	for _, s := range words {
		if s != "" {
			kept = append(kept, s)
		}
	}
	w.lines = append(w.lines, strings.Join(kept, " "))
}

// ip adds a line of ip(8) in a place: command as it is, args quoted.
func (w *writer) ip(place plan.Place, command string, args ...string) {
	words := []string{w.ipIn(place), command}
	for _, a := range args {
		words = append(words, quote(a))
	}
	w.add(words...)
}

// ipOr is ip for what is an error when done twice.
func (w *writer) ipOr(place plan.Place, command string, args ...string) {
	w.ip(place, command, args...)
	w.lines[len(w.lines)-1] += " || true"
}

// ipIn opens an ip(8) command in a place. Its -n takes no path.
func (w *writer) ipIn(place plan.Place) string {
	if place == plan.Host {
		return "ip"
	}
	if name := w.Name(place); !strings.Contains(name, "/") {
		return "ip -n " + quote(name)
	}
	return w.inside(place) + " ip"
}

// inside opens a command of any kind in a place.
func (w *writer) inside(place plan.Place) string {
	if place == plan.Host {
		return ""
	}
	name := w.Name(place)
	if strings.Contains(name, "/") {
		return "nsenter " + quote("--net="+name)
	}
	return "ip netns exec " + quote(name)
}

// quote makes a word safe for the shell: paths are the user's, and a link's
// name may hold almost anything.
func quote(s string) string {
	plain := s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=@%+,", r))
	}) < 0
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
