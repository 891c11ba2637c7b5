package nft

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A feature is a part of nf_tables that a kernel may be built without.
type feature struct {
	name  string
	queue func(*nftables.Conn) error
}

var probeTable = &nftables.Table{Name: "berth-probe", Family: nftables.TableFamilyINet}

// features are what table inet berth needs, each after what it needs itself.
var features = []feature{
	{"inet tables (CONFIG_NF_TABLES_INET)", func(*nftables.Conn) error { return nil }},
	{"conntrack in rules (CONFIG_NFT_CT)", withRule(nftables.ChainTypeFilter, ctBits(expr.CtKeySTATE, stateInvalid))},
	{"route look-ups in rules (CONFIG_NFT_FIB_INET)", withRule(nftables.ChainTypeFilter, fibType(false))},
	{"NAT chains (CONFIG_NFT_NAT)", withRule(nftables.ChainTypeNAT, nil)},
	{"masquerading (CONFIG_NFT_MASQ)", withRule(nftables.ChainTypeNAT, masquerade())},
	{"sets of prefixes", withSet("masq4")},
	{"sets of prefix and link (Linux 5.6)", withSet("hairpin4")},
	{"counters in sets (Linux 5.7)", withSet("refused_to")},
}

func withRule(kind nftables.ChainType, exprs []expr.Any) func(*nftables.Conn) error {
	return func(c *nftables.Conn) error {
		ch := c.AddChain(&nftables.Chain{
			Name: "probe", Table: probeTable, Type: kind, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		c.AddRule(&nftables.Rule{Table: probeTable, Chain: ch, Exprs: exprs})
		return nil
	}
}

func withSet(name string) func(*nftables.Conn) error {
	return func(c *nftables.Conn) error {
		s := *setNamed(name)
		s.Table = probeTable
		return c.AddSet(&s, nil)
	}
}

// lacking names the features that this kernel has not. Each is tried in a
// transaction that also deletes a table that is not there: it never commits.
func (c *Conn) lacking(all []feature) (names []string) {
	if c.ready() != nil {
		return nil
	}
	never := &nftables.Table{Name: "berth-never", Family: probeTable.Family}
	for _, f := range all {
		c.nft.AddTable(probeTable)
		if err := f.queue(c.nft); err != nil {
			c.giveUp()
			return names
		}
		c.nft.DelTable(never)
		if refusals(c.nft.Flush()) > 1 {
			names = append(names, f.name)
		}
	}
	return names
}

// refusals counts the messages of a batch that the kernel refused.
func refusals(err error) int {
	switch e := err.(type) {
	case nil:
		return 0
	case interface{ Unwrap() []error }:
		n := 0
		for _, one := range e.Unwrap() {
			n += refusals(one)
		}
		return n
	case unix.Errno:
		return 1
	case interface{ Unwrap() error }:
		return refusals(e.Unwrap())
	}
	return 0
}
