package plan

import (
	"net/netip"
	"slices"
	"strings"

	"berth"
)

// A Step is one change of the kernel. Every step may be done twice: a put
// tolerates "already so", a drop "already gone".
type Step interface{ step() }

type (
	// Transaction is one nftables transaction on table inet berth.
	Transaction struct {
		// Rebuild deletes the table, with all its elements, and makes it anew
		// from ruleset.nft before Put.
		Rebuild bool
		// Remove deletes the table; Drop and Put are empty.
		Remove bool
		// Drop comes before Put. A key in both changes its value without a
		// moment in between.
		Drop, Put []Element
	}

	// PutLink makes a link, or brings the one that is there to shape. For a
	// veth it makes both ends: the link named by Key gets its peer Inside,
	// which stays down. An end that stands elsewhere or belongs to another
	// pair of ours is made anew.
	PutLink struct {
		Key  LinkKey
		Link Link
		// Inside is the other end of a veth, at Link.Peer. Its zero value says
		// that the pair stands and the other end is as it should be.
		Inside Link
	}
	// UpLink brings up a link that PutLink made down, or a loopback.
	UpLink struct{ Key LinkKey }
	// DropLinks deletes links of Berth's of one place, together.
	DropLinks struct {
		Place Place
		Names []string
		// Others: also those that are not Berth's; the caller knows whose they are.
		Others bool
	}
	// TuneLink changes what is said of a link, whoever made it. No plan has it:
	// it is for callers that are told to change what is others'.
	TuneLink struct {
		Key                   LinkKey
		MTU                   int       // 0: as it is
		MAC                   berth.MAC // zero: as it is
		Promisc, AllMulti, Up *bool     // nil: as it is
		Isolated              *bool     // of a bridge's port; nil: as it is
		TxQueue               *int      // packets; nil: as it is
	}

	// PutShape holds back what passes a link, as Shape says; Was is how it was.
	// The zero Shape takes ours away.
	PutShape struct {
		Key        LinkKey
		Shape, Was Shape
	}

	PutAddr struct {
		Key AddrKey
		// Bare says that the address stands and a route that the kernel made
		// with it does not.
		Bare bool
		// NoSubnet says that the subnet is not reached by the link itself.
		NoSubnet bool
	}
	DropAddr struct{ Key AddrKey }
	PutRoute struct {
		Key   RouteKey
		Route Route
		// Others: it is nobody's that can be known by its number.
		Others bool
	}
	DropRoute struct {
		Key   RouteKey
		Route Route
	}
	PutRule  struct{ Key RuleKey }
	DropRule struct{ Key RuleKey }

	// SetSysctl writes Value. It is also how a sysctl is dropped: its Value is
	// then the kernel's default.
	SetSysctl struct {
		Key   SysctlKey
		Value string
	}

	// PutNetns makes a network namespace pinned in /run/netns under Name;
	// DropNetns takes the pin away.
	PutNetns  struct{ Name string }
	DropNetns struct{ Name string }

	// FlushConntrack forgets connections that must not outlive what changed:
	// every entry from or to one of Addrs, and the UDP entries that were
	// addressed to one of Ports. With Cut, the entries of Ports go whatever
	// their protocol.
	FlushConntrack struct {
		Addrs []netip.Addr
		Ports []berth.PortKey
		Cut   bool
	}
)

// An Element is an element of a set or map with its key.
type Element struct {
	ElemKey
	Elem
}

// ordered are elements by set and key.
type ordered struct{ guards, grants []Element }

func elements(m map[ElemKey]Elem) ordered {
	some := make([]Element, 0, len(m))
	order := make([]int32, 0, len(m)) // is sorted in their place: they are 64 bytes each
	for k, e := range m {
		order = append(order, int32(len(some)))
		some = append(some, Element{k, e})
	}
	slices.SortFunc(order, func(i, j int32) int {
		a, b := &some[i], &some[j]
		if a.Set == b.Set {
			return strings.Compare(a.Key, b.Key)
		}
		if grants[a.Set] != grants[b.Set] {
			if grants[b.Set] {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Set, b.Set)
	})
	all := make([]Element, len(some))
	for to, from := range order {
		all[to] = some[from]
	}
	n := slices.IndexFunc(all, func(e Element) bool { return grants[e.Set] })
	if n < 0 {
		n = len(all)
	}
	return ordered{all[:n:n], all[n:]}
}

// without is all, less the keys of m.
func without(all []Element, m map[ElemKey]Elem) []Element {
	if len(m) == 0 {
		return slices.Clip(all)
	}
	var out []Element
	for _, e := range all {
		if _, ok := m[e.ElemKey]; !ok {
			out = append(out, e)
		}
	}
	return out
}

func (Transaction) step()    {}
func (PutLink) step()        {}
func (UpLink) step()         {}
func (DropLinks) step()      {}
func (TuneLink) step()       {}
func (PutShape) step()       {}
func (PutAddr) step()        {}
func (DropAddr) step()       {}
func (PutRoute) step()       {}
func (DropRoute) step()      {}
func (PutRule) step()        {}
func (DropRule) step()       {}
func (SetSysctl) step()      {}
func (PutNetns) step()       {}
func (DropNetns) step()      {}
func (FlushConntrack) step() {}
