package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/internal/foreign"
)

// A legacyKind is one of the two old tables: x_tables of a family. Its rules
// are read by getsockopt on a raw socket (ip_tables.h, ip6_tables.h).
type legacyKind struct {
	family        string
	domain, level int
	names         string // file that lists its tables
	header        int    // bytes of an entry before its matches
	iface         int    // offset of the input link's name in an entry
	targetOffset  int    // offset of target_offset in an entry
	selective     []span2
}

// span2 is a part of an entry that is zero if it matches everything.
type span2 struct{ from, to int }

// Offsets of struct ipt_entry (112 bytes) and ip6t_entry (168). The link's
// names are 16 bytes each, then their masks.
var legacyKinds = []legacyKind{
	{family: "ip", domain: unix.AF_INET, level: unix.IPPROTO_IP, names: "/proc/net/ip_tables_names", header: 112, iface: 16, targetOffset: 88, selective: []span2{{8, 16}, {80, 84}}},
	{family: "ip6", domain: unix.AF_INET6, level: unix.IPPROTO_IPV6, names: "/proc/net/ip6_tables_names", header: 168, iface: 64, targetOffset: 140, selective: []span2{{32, 64}, {128, 134}}},
}

const (
	soGetInfo    = 64 // IPT_SO_GET_INFO
	soGetEntries = 65 // IPT_SO_GET_ENTRIES
	forwardHook  = unix.NF_INET_FORWARD
)

// legacy reads the filter tables of iptables-legacy.
func (c *Conn) legacy() ([]foreign.Table, error) {
	var out []foreign.Table
	err := c.ns.Do(func() error {
		for _, k := range legacyKinds {
			// Asking for a table that is not there would load it.
			b, err := os.ReadFile(strings.Replace(k.names, "/proc/", "/proc/thread-self/", 1))
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
	start, policy, size := word(36+4*forwardHook), word(56+4*forwardHook), word(80)
	// struct ipt_get_entries: name[32], size, padding, then the entries.
	blob := make([]byte, 40+size)
	copy(blob, "filter")
	binary.NativeEndian.PutUint32(blob[32:], size)
	if err := getsockopt(fd, k.level, soGetEntries, blob); err != nil {
		return t, err
	}
	t.Chains = k.chains(blob[40:], start, policy)
	return t, nil
}

// chains cuts the entries into chains: a user chain begins with an ERROR
// target that holds its name, and jumps lead to offsets.
func (k legacyKind) chains(blob []byte, start, policy uint32) []foreign.Chain {
	names := map[uint32]string{start: "FORWARD"}
	type entry struct {
		offset uint32
		rule   foreign.Rule
		jump   int32
		marker string
	}
	var all []entry
	for off := uint32(0); int(off)+k.header <= len(blob); {
		e := blob[off:]
		target := binary.NativeEndian.Uint16(e[k.targetOffset:])
		next := binary.NativeEndian.Uint16(e[k.targetOffset+2:])
		if next == 0 || int(off)+int(next) > len(blob) || int(target)+32 > int(next) {
			break
		}
		en := entry{offset: off}
		en.rule, en.jump, en.marker = k.entry(e[:next], int(target))
		if en.marker != "" && en.marker != "ERROR" {
			names[off+uint32(next)] = en.marker
		}
		all = append(all, en)
		off += uint32(next)
	}
	var out []foreign.Chain
	for _, en := range all {
		if name, ok := names[en.offset]; ok {
			c := foreign.Chain{Name: name}
			if name == "FORWARD" {
				c.Hook = foreign.Forward
			}
			out = append(out, c)
		}
		if len(out) == 0 || en.marker != "" {
			continue
		}
		c := &out[len(out)-1]
		if c.Hook == foreign.Forward && en.offset == policy {
			c.Drop = en.rule.Verdict == foreign.Drop
			continue
		}
		if en.jump > 0 {
			en.rule.Verdict, en.rule.To = foreign.Jump, names[uint32(en.jump)]
		}
		c.Rules = append(c.Rules, en.rule)
		c.Number++
	}
	return out
}

// entry reads one rule: its links, and its standard target's verdict.
func (k legacyKind) entry(e []byte, target int) (r foreign.Rule, jump int32, marker string) {
	name := func(at int) *foreign.Name {
		text, mask := e[at:at+16], e[at+32:at+48]
		n := &foreign.Name{Text: string(bytes.TrimRight(text, "\x00"))}
		if n.Text == "" {
			return nil
		}
		n.Prefix = mask[len(n.Text)] == 0
		return n
	}
	r.IIF, r.OIF = name(k.iface), name(k.iface+16)
	// Source, destination masks, protocol, flags and inversions, and matches
	// between the header and the target.
	r.Opaque = target > k.header
	for _, s := range k.selective {
		r.Opaque = r.Opaque || len(bytes.Trim(e[s.from:s.to], "\x00")) > 0
	}
	t := e[target:]
	kind := string(bytes.TrimRight(t[2:31], "\x00"))
	switch kind {
	case "": // standard
		v := int32(binary.NativeEndian.Uint32(t[32:]))
		switch v {
		case -1: // -NF_DROP-1
			r.Verdict = foreign.Drop
		case -2:
			r.Verdict = foreign.Accept
		case -5: // RETURN
			r.Verdict = foreign.Return
		default:
			jump = v
		}
	case "ERROR":
		marker = string(bytes.TrimRight(t[32:min(len(t), 62)], "\x00"))
	case "REJECT":
		r.Verdict = foreign.Drop
	}
	return r, jump, marker
}
