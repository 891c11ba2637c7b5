package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"unsafe"

	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"berth/internal/foreign"
)

// A legacyKind is one of the two old tables: x_tables of a family. Its rules
// are read by getsockopt on a raw socket (ip_tables.h, ip6_tables.h).
type legacyKind struct {
	family        string
	proto         xt.TableFamily
	domain, level int
	names         string // file that lists its tables
	// Places in an entry (struct ipt_entry, ip6t_entry): the addresses with
	// their masks, the links' names with theirs, the protocol, the flags, the
	// inversions, target_offset, and the end of the header.
	address, link, protocol, flags, inversions, target, header int
	flagGoto, flagProtocol                                     byte // 0: every protocol but 0 counts
}

var legacyKinds = []legacyKind{
	{
		family: "ip", proto: unix.NFPROTO_IPV4, domain: unix.AF_INET, level: unix.IPPROTO_IP, names: "ip_tables_names",
		address: 4, link: 16, protocol: 80, flags: 82, inversions: 83, target: 88, header: 112, flagGoto: 2,
	},
	{
		family: "ip6", proto: unix.NFPROTO_IPV6, domain: unix.AF_INET6, level: unix.IPPROTO_IPV6, names: "ip6_tables_names",
		address: 16, link: 64, protocol: 128, flags: 131, inversions: 132, target: 140, header: 168, flagGoto: 4, flagProtocol: 1,
	},
}

const (
	soGetInfo    = 64 // IPT_SO_GET_INFO
	soGetEntries = 65 // IPT_SO_GET_ENTRIES
)

// legacyHooks are those of the filter table that matter, with their built-in
// chains.
var legacyHooks = map[int]struct {
	hook foreign.Hook
	name string
}{
	unix.NF_INET_LOCAL_IN: {foreign.Input, "INPUT"}, unix.NF_INET_FORWARD: {foreign.Forward, "FORWARD"},
}

// legacy reads the filter tables of iptables-legacy.
func (c *Conn) legacy() ([]foreign.Table, error) {
	var out []foreign.Table
	err := c.ns.Do(func() error {
		for _, k := range legacyKinds {
			// Asking for a table that is not there would load it.
			b, err := os.ReadFile("/proc/thread-self/net/" + k.names)
			// In a user namespace it cannot be read, and no such table be made.
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || err == nil && !bytes.Contains(b, []byte("filter\n")) {
				continue
			}
			if err != nil {
				return err
			}
			t, err := k.read()
			if err != nil {
				return fmt.Errorf("read the old %s table filter: %w", k.family, err)
			}
			out = append(out, t)
		}
		return nil
	})
	return out, err
}

func getsockopt(fd, level, name int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func (k legacyKind) read() (foreign.Table, error) {
	t := foreign.Table{Family: k.family, Name: "filter", Legacy: true}
	fd, err := unix.Socket(k.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return t, err
	}
	defer unix.Close(fd)
	// struct ipt_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5],
	// num_entries, size.
	info := make([]byte, 84)
	copy(info, "filter")
	if err := getsockopt(fd, k.level, soGetInfo, info); err != nil {
		return t, err
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(info[i:]) }
	size := word(80)
	// struct ipt_get_entries: name[32], size, padding, then the entries.
	blob := make([]byte, 40+size)
	copy(blob, "filter")
	binary.NativeEndian.PutUint32(blob[32:], size)
	if err := getsockopt(fd, k.level, soGetEntries, blob); err != nil {
		return t, err
	}
	l := layout{chains: map[uint32]foreign.Chain{}, policies: map[uint32]bool{}}
	for number, h := range legacyHooks {
		l.chains[word(36+4*number)] = foreign.Chain{Name: h.name, Hook: h.hook, Type: "filter"}
		l.policies[word(56+4*number)] = true
	}
	t.Chains = k.chains(blob[40:], l)
	return t, nil
}

// A layout is where in the entries what begins: chains by their first entry,
// and the built-in chains' policies, each the last entry of its chain.
type layout struct {
	chains   map[uint32]foreign.Chain
	policies map[uint32]bool
}

// A legacyEntry is one rule with where a jump of it leads, or the head of a
// user's chain.
type legacyEntry struct {
	offset uint32
	rule   foreign.Rule
	jump   uint32 // 0: none
	head   string
}

// chains cuts the entries into chains: a user's chain begins with an ERROR
// target that holds its name, and jumps lead to offsets.
func (k legacyKind) chains(blob []byte, l layout) (out []foreign.Chain) {
	var all []legacyEntry
	for off := uint32(0); int(off)+k.header <= len(blob); {
		e := blob[off:]
		next := uint32(binary.NativeEndian.Uint16(e[k.target+2:]))
		if int(next) < k.header || int(next) > len(e) {
			break
		}
		en := k.entry(e[:next])
		en.offset = off
		off += next
		if en.head != "" {
			l.chains[off] = foreign.Chain{Name: en.head}
		}
		all = append(all, en)
	}
	for _, en := range all {
		if c, ok := l.chains[en.offset]; ok {
			out = append(out, c)
		}
		if len(out) == 0 || en.head != "" {
			continue
		}
		c := &out[len(out)-1]
		if l.policies[en.offset] {
			c.Drop = en.rule.Verdict == foreign.Drop
			// What follows until the next chain's beginning belongs to none.
			out = append(out, foreign.Chain{})
			continue
		}
		if en.jump > 0 {
			to, ok := l.chains[en.jump]
			if en.rule.To = to.Name; !ok { // a rule without a target leads to the next
				en.rule.Verdict = foreign.Next
			}
		}
		c.Rules = append(c.Rules, en.rule)
	}
	return slices.DeleteFunc(out, func(c foreign.Chain) bool { return c.Name == "" })
}

// entry reads one rule.
func (k legacyKind) entry(e []byte) (en legacyEntry) {
	target := int(binary.NativeEndian.Uint16(e[k.target:]))
	if target < k.header || target+32 > len(e) {
		return en
	}
	en.rule.Matches = append(k.fields(e), k.matches(e[k.header:target])...)
	t := e[target:]
	kind, data := cString(t[2:31]), t[32:]
	u := reader{out: en.rule}
	switch {
	case kind == "ERROR":
		en.head = cString(data)
	case kind != "":
		u.target(kind)
		en.rule = u.out
	case len(data) >= 4:
		switch v := int32(binary.NativeEndian.Uint32(data)); {
		case v >= 0:
			en.jump, en.rule.Verdict = uint32(v), foreign.Jump
			if e[k.flags]&k.flagGoto != 0 {
				en.rule.Verdict = foreign.Goto
			}
		case v == -1: // -NF_DROP-1
			en.rule.Verdict = foreign.Drop
		case v == -2: // -NF_ACCEPT-1
			en.rule.Verdict = foreign.Accept
		case v == -5: // XT_RETURN
			en.rule.Verdict = foreign.Return
		default: // -NF_QUEUE-1
			u.target("QUEUE")
			en.rule = u.out
		}
	}
	return en
}

// Inversions, the same for both families (ip_tables.h).
const invIn, invOut, invSource, invDestination, invFragment, invProtocol = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40

// fields reads what every entry has.
func (k legacyKind) fields(e []byte) (out []foreign.Match) {
	inv := e[k.inversions]
	if n, ok := k.name(e, 0); ok {
		out = append(out, foreign.In{Names: []foreign.Name{n}, Not: inv&invIn != 0})
	}
	if n, ok := k.name(e, 1); ok {
		out = append(out, foreign.Out{Names: []foreign.Name{n}, Not: inv&invOut != 0})
	}
	for i, bit := range []byte{invSource, invDestination} {
		value, mask := e[i*k.address:(i+1)*k.address], e[(2+i)*k.address:(3+i)*k.address]
		p, ok := prefixesOf(load{mask: mask, size: uint32(k.address), ipv6: k.domain == unix.AF_INET6}, [][]byte{value})
		switch {
		case !ok:
			out = append(out, foreign.Unknown{})
		case p[0].Bits() == 0 && inv&bit == 0:
		case bit == invSource:
			out = append(out, foreign.Source{Prefixes: p, Not: inv&bit != 0})
		default:
			out = append(out, foreign.Destination{Prefixes: p, Not: inv&bit != 0})
		}
	}
	number := uint8(binary.NativeEndian.Uint16(e[k.protocol:]))
	if k.flagProtocol == 0 && number != 0 || e[k.flags]&k.flagProtocol != 0 {
		out = append(out, foreign.Protocol{Numbers: []uint8{number}, Not: inv&invProtocol != 0})
	}
	// Fragments, and IPv6's traffic class.
	if e[k.flags]&^(k.flagGoto|k.flagProtocol) != 0 || inv&invFragment != 0 {
		out = append(out, foreign.Unknown{})
	}
	return out
}

// name reads the link that a packet comes in by (0) or leaves by (1). It is
// compared as far as its mask goes: with its zero, or else it is a prefix.
func (k legacyKind) name(e []byte, which int) (n foreign.Name, ok bool) {
	at := k.link + 16*which
	text, mask := e[at:at+16], e[at+32:at+48]
	if mask[0] == 0 {
		return n, false
	}
	n.Text = cString(text)
	n.Prefix = len(n.Text) < 16 && mask[len(n.Text)] == 0
	return n, true
}

// matches reads the matches between the header and the target: struct
// xt_entry_match is size, name[29], revision, data.
func (k legacyKind) matches(b []byte) (out []foreign.Match) {
	for len(b) >= 32 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 32 || size > len(b) {
			return append(out, foreign.Unknown{})
		}
		info, err := xt.Unmarshal(cString(b[2:31]), k.proto, uint32(b[31]), b[32:size])
		if err != nil {
			return append(out, foreign.Unknown{})
		}
		out = append(out, matchesOf(info)...)
		b = b[size:]
	}
	return out
}

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
