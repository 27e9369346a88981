"""What several tests share: peers, corpora, fake disks."""
