"""Where Debian's docker-registry 2.8.2 does otherwise than the distribution specification 1.1 says: test -> how.

Most of it is younger than that registry, which was made for 1.0 (the referrers API, the paging of tags).
"""

NO_REFERRERS = "no referrers API: 404"
NO_PAGES = "tags are listed in no order, and `n` and `last` are passed over"
NO_ORDER = "Content-Range of a chunk is not looked at: chunks are appended in whatever order they come, 202"

DIFFERENCES = {
    "test_end_2_a_range_behind_the_end_is_416": "200 and a length, and then an error text that is shorter",
    "test_end_3_a_reference_is_a_tag_or_a_digest_and_nothing_else": "a cut-off digest is a 500",
    "test_end_5_a_chunk_out_of_order_is_416": NO_ORDER,
    "test_end_5_the_first_chunk_must_begin_with_0": NO_ORDER,
    "test_end_5_a_chunk_that_was_sent_before_is_416": NO_ORDER,
    "test_end_5_13_after_416_the_status_says_where_to_go_on": NO_ORDER,
    "test_end_6_a_final_chunk_out_of_order_is_416": "400: seen by the digest of the whole only",
    "test_end_7_the_subject_is_told_in_a_header": "no OCI-Subject header, as there is no referrers API",
    "test_end_7_a_manifest_over_the_limit_is_413": "400 MANIFEST_INVALID (413 is a SHOULD)",
    "test_end_7_what_is_no_manifest_is_refused[empty]": "the manifest `{}` is a 500",
    "test_no_other_name_is_taken[too-long]": "a name too long for a file's is a 500",
    "test_end_8a_tags_are_listed_in_lexical_order": NO_PAGES,
    "test_end_8b_n_gives_that_many_from_the_beginning": NO_PAGES,
    "test_end_8b_more_than_there_are_gives_all": NO_PAGES,
    "test_end_8b_last_gives_what_comes_behind_it": NO_PAGES,
    "test_end_8b_n_is_optional_beside_last": NO_PAGES,
    "test_end_8b_nothing_comes_behind_the_last": NO_PAGES,
    "test_end_8b_zero_gives_an_empty_list_and_no_link": NO_PAGES,
    "test_end_8b_links_lead_through_all_tags": NO_PAGES,
    "test_end_12a_what_nothing_refers_to_has_an_empty_list": NO_REFERRERS,
    "test_end_12a_referrers_are_described_with_type_and_annotations": NO_REFERRERS,
    "test_end_12a_without_an_artifact_type_it_is_the_configs": NO_REFERRERS,
    "test_end_12a_an_index_without_an_artifact_type_has_none": NO_REFERRERS,
    "test_end_12a_a_subject_may_come_after_its_referrers": NO_REFERRERS,
    "test_end_12a_only_referrers_of_the_same_repository_are_listed": NO_REFERRERS,
    "test_end_12a_a_referrer_that_is_deleted_is_listed_no_more": NO_REFERRERS,
    "test_end_12a_what_is_no_digest_is_400": NO_REFERRERS,
    "test_end_12b_a_filter_that_was_applied_is_told": NO_REFERRERS,
}
